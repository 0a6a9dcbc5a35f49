"""`make test-fast` needs neither torch nor vLLM: its tests are collected without them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_all_tests_are_collected_without_torch() -> None:
    options = ["-q", "-n", "0", "--collect-only", "-p", "tests.without_torch"]
    command = [sys.executable, "-m", "pytest", *options, "tests"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
