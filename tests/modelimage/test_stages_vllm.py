"""The models that vLLM doesn't split into pipeline stages, as its own registry has them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from modelimage.architectures import has_stages, is_draft
from tests.servers.process import child_environment

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(900)]

# Classes of models that need what isn't installed here are left out.
PROGRAM = """
import json
from vllm.model_executor.models import registry
found = {}
for name, model in list(registry.ModelRegistry.models.items()):
    try:
        found[name] = bool(registry.supports_pp(model.load_model_cls()))
    except ImportError:
        pass
print(json.dumps(found))
"""


def test_the_table_is_vllms_registry(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True,
        env=child_environment(tmp_path, HF_HUB_OFFLINE="1"),
    )  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) > 200
    wrong = [name for name, can in found.items() if not is_draft(name) and has_stages(name) != can]
    assert wrong == []
