"""The demonstration as `make demo` runs it, with a stand-in for vLLM: what it says, and that it can fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.weightyard.local import Terminal


def run_demo(terminal: Terminal, smollm2: Path, answer: str) -> subprocess.CompletedProcess[str]:
    environment = terminal.environment() | {
        "WEIGHTYARD_CACHE": str(smollm2.parent.parent), "FAKE_ENGINE_ANSWER": answer,
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, "-m", "weightyard.demo", "--dir", str(terminal.directory / "demo")],
        env=environment, cwd=terminal.directory, capture_output=True, text=True, check=False,
    )  # fmt: skip


def running(terminal: Terminal) -> list[dict[str, object]]:
    return terminal.ps("--root", str(terminal.directory / "demo" / "store"))


def test_right_answer(tmp_root: Path, smollm2: Path) -> None:
    terminal = Terminal(tmp_root)
    done = run_demo(terminal, smollm2, " Paris.")
    assert done.returncode == 0, done.stderr
    steps = [line.split()[0] for line in done.stdout.splitlines() if line.endswith(" s")]
    assert steps == ["checkpoint", "build", "pull", "up", "ask", "down", "total"]
    assert done.stdout.endswith("The capital of France is Paris.\n")
    assert running(terminal) == []


@pytest.mark.parametrize(
    ("fake", "answer", "says"),
    [("", " London.", "doesn't name Paris"), ("dies", "", "ended with code 1")],
)
def test_failures_are_told_and_nothing_runs_on(
    tmp_root: Path, smollm2: Path, fake: str, answer: str, says: str
) -> None:
    terminal = Terminal(tmp_root, fake=fake)
    done = run_demo(terminal, smollm2, answer)
    assert done.returncode == 13
    assert says in done.stderr
    assert running(terminal) == []
