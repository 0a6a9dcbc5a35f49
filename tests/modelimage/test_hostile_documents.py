"""Memory that a stranger's document takes: bounded by its parser, whatever it is made of."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from modelimage.record import MAX_RECORD_BYTES
from tests.modelimage.hostile_documents import KINDS
from tests.servers.process import child_environment

ROOT = Path(__file__).parents[2]
# The controller's limit is 512 MiB; records are parsed one at a time.
MOST = 160 << 20


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [MAX_RECORD_BYTES - (1 << 20), 2_000_000])
def test_parsing_takes_little_memory(kind: str, size: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.modelimage.hostile_documents", kind, str(size)],
        cwd=ROOT,
        env=child_environment(tmp_path),
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < MOST, done.stderr
