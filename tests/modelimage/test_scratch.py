"""Scratch directories of killed processes are removed by the next one; those in use, of others and links stay."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from modelimage.scratch import scratch_directory

CHILD = """
import sys
from modelimage.scratch import scratch_directory
with scratch_directory("work") as path:
    print(path, flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_process_left_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "work-link").symlink_to(elsewhere)
    (tmp_path / "work-file").write_bytes(b"x")
    (tmp_path / "work-new").mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp_path)}, cwd=Path(__file__).parents[2],
    ) as child:  # fmt: skip
        assert child.stdout is not None
        left = Path(child.stdout.readline().decode().strip())
        os.utime(left, (0, 0))
        with scratch_directory("work") as mine:
            assert left.exists(), "it is in use"
            assert list(mine.iterdir()) == []
        child.kill()
    assert left.exists()
    with scratch_directory("work") as mine:
        assert not left.exists()
        assert mine.is_dir()
    assert not mine.exists()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["elsewhere", "work-file", "work-link", "work-new"]
