"""Locates llm-compressor. It pins another compressed-tensors than vLLM, so it has its own environment."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from modelimage.child import SAFE_PATH
from modelimage.errors import EngineFailed
from modelimage.user_cache import user_cache
from quantize.errors import EngineMissing

VARIABLE: Final = "WEIGHTYARD_LLMCOMPRESSOR_PYTHON"
VERSION: Final = "0.14.0.1"
_VERSIONS = (
    "import importlib.metadata as m, json;"
    "print(json.dumps({n: m.version(n) for n in ('llmcompressor', 'compressed-tensors', 'torch')}))"
)


def interpreter(environment: Mapping[str, str]) -> Path:
    """The Python that has llm-compressor. Raises EngineMissing with the commands that install it."""
    stated = environment.get(VARIABLE)
    python = Path(stated) if stated else managed_environment(environment) / "bin" / "python"
    if python.is_file():
        return python
    where = managed_environment(environment)
    what = (
        f"{VARIABLE} names {python}, which isn't there"
        if stated
        else "llm-compressor isn't installed"
    )
    raise EngineMissing(
        what,
        hint=f"Run: python3 -m venv {where} && {where}/bin/pip install llmcompressor=={VERSION}",
    )


def managed_environment(environment: Mapping[str, str]) -> Path:
    """The default directory of the environment."""
    return user_cache(environment) / "venvs" / "llmcompressor"


def versions(python: Path) -> dict[str, str]:
    """The library versions installed there. Raises EngineFailed."""
    done = subprocess.run(
        [python, "-c", _VERSIONS], env={**os.environ, **SAFE_PATH}, capture_output=True, check=False
    )
    if done.returncode != 0:
        raise EngineFailed(
            f"{python} has no working llm-compressor: {done.stderr.decode(errors='replace')[-500:]}",
            hint=f"Run: {python} -m pip install llmcompressor=={VERSION}",
        )
    found: dict[str, str] = json.loads(done.stdout)
    return found
