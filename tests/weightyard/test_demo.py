"""The demonstration as `make demo` runs it, with a stand-in for vLLM: what it says, and that it can fail."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from modelimage.errors import EngineFailed
from tests.weightyard.local import Terminal
from weightyard.console import Console
from weightyard.demo.background import BackgroundCommand


@pytest.fixture(scope="module")
def built(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image as an earlier run leaves it, but for the measured quality, which takes a minute."""
    root = tmp_path_factory.mktemp("built")
    terminal = Terminal(root)
    terminal.ok(
        "build", str(smollm2), "--to", f"oci:{root}/image:v1",
        "--variant", "int8", "--variant", "int4", "--engine", "rtn",
    )  # fmt: skip
    return root / "image"


def place(built: Path, terminal: Terminal) -> None:
    """The image where the demonstration looks for it; blobs are never written to, so links are enough."""
    shutil.copytree(built, terminal.directory / "demo" / "image", copy_function=os.link)


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


@pytest.mark.slow
def test_right_answer(tmp_root: Path, smollm2: Path, built: Path) -> None:
    terminal = Terminal(tmp_root)
    place(built, terminal)
    done = run_demo(terminal, smollm2, " Paris.")
    assert done.returncode == 0, done.stderr
    steps = [line.split()[0] for line in done.stdout.splitlines() if line.endswith(" s")]
    assert steps == ["checkpoint", "build", "compare", "up", "ask", "down", "total"]
    rows = {
        line.split("  ")[0]: line
        for line in done.stdout.splitlines()
        if "█" in line or "pulled again" in line
    }
    assert "none" in rows["copied, cold"]
    assert "271 MB" in rows["pulled, cold"]
    assert "none" not in rows["pulled, cold"]
    assert " 0 B " in rows["pulled again"]
    assert {"bf16", "int8", "int4"} <= rows.keys()
    assert done.stdout.endswith("The capital of France is Paris.\n")
    assert "not measured" in rows["int8"]
    assert running(terminal) == []


@pytest.mark.slow
@pytest.mark.torch
def test_the_first_run_measures_the_variants(tmp_root: Path, smollm2: Path) -> None:
    terminal = Terminal(tmp_root)
    done = run_demo(terminal, smollm2, " Paris.")
    assert done.returncode == 0, done.stderr
    steps = [line.split()[0] for line in done.stdout.splitlines() if line.endswith(" s")]
    assert steps[-5:] == ["up", "ask", "down", "variants", "total"]
    shown = {
        line.split()[0]: line for line in done.stdout.splitlines() if "%" in line and "x " in line
    }
    assert shown.keys() >= {"bf16", "int8", "int4"}
    ratios = [float(shown[each].split("x ")[1].split()[0]) for each in ("bf16", "int8", "int4")]
    assert ratios[0] == 1.0
    assert ratios[1] < ratios[2]


def test_a_command_in_the_background_ends_with_the_demonstration(tmp_root: Path) -> None:
    """Even when another step fails: here the command would wait for its input for ever."""
    os.mkfifo(tmp_root / "never")
    command = BackgroundCommand(["inspect", str(tmp_root / "never")], tmp_root / "log", os.environ)
    with pytest.raises(ValueError, match="another step"), command:
        raise ValueError("another step")
    assert command.ended


def test_a_failure_in_the_background_is_told(tmp_root: Path) -> None:
    console = Console(out=io.StringIO(), err=io.StringIO())
    command = BackgroundCommand(["pull", "oci:/nowhere:v1"], tmp_root / "log", os.environ)
    with command, pytest.raises(EngineFailed, match="there is no") as failed:
        command.finish(console)
    assert str(tmp_root / "log") in str(failed.value.hint)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fake", "answer", "says"),
    [("", " London.", "doesn't name Paris"), ("dies", "", "ended with code 1")],
)
def test_failures_are_told_and_nothing_runs_on(
    tmp_root: Path, smollm2: Path, built: Path, fake: str, answer: str, says: str
) -> None:
    terminal = Terminal(tmp_root, fake=fake)
    place(built, terminal)
    done = run_demo(terminal, smollm2, answer)
    assert done.returncode == 13
    assert says in done.stderr
    assert running(terminal) == []
