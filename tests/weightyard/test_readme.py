"""What the README and the examples promise: the tour runs as written, the examples are planned."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers.process import child_environment, free_port
from tests.workspace.samples import record
from workspace.document import parse_workspace
from workspace.hardware import requested_hardware
from workspace.launch_plan import choose_variant

REPOSITORY = Path(__file__).parents[2]
EXAMPLES = sorted((REPOSITORY / "examples").glob("*.yaml"))
_BLOCK = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def tour() -> str:
    """All shell blocks of the README, in order."""
    return "\n".join(_BLOCK.findall((REPOSITORY / "README.md").read_text()))


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_tour(tmp_root: Path, smollm2: Path) -> None:
    environment = child_environment(tmp_root, WEIGHTYARD_CACHE=str(smollm2.parent.parent))
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    port = str(free_port())  # the README's may be taken here
    try:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", tour().replace("8137", port)],
            cwd=tmp_root, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
    finally:
        subprocess.run(
            [sys.executable, "-m", "weightyard.cli", "down", "--all"],
            env=environment, cwd=tmp_root, check=True, capture_output=True,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    promises = (
        "oci:./smollm2:v1 is intact",
        f"ready at http://127.0.0.1:{port}",
        " Paris",
        "smollm2: stopped",
    )
    assert [promise for promise in promises if promise not in done.stdout] == []


def test_tour_has_every_verb() -> None:
    """The tour isn't empty, and names only commands that exist."""
    from weightyard.cli import entries  # noqa: PLC0415

    named = set(re.findall(r"^weightyard ([a-z]+)", tour(), re.MULTILINE))
    assert (
        {"build", "inspect", "verify", "pull", "up", "ps", "logs", "down"}
        <= named
        <= set(entries())
    )


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_planned(path: Path) -> None:
    workspace = parse_workspace(path.read_text(), name=path.name)
    hardware = requested_hardware(workspace.spec.resources)
    records = {
        v: record(v, weight_bytes=size) for v, size in (("bf16", 16 * 10**9), ("int8", 9 * 10**9))
    }
    assert choose_variant(workspace, records, hardware).variant in records


def test_examples_are_listed() -> None:
    listing = (REPOSITORY / "examples" / "README.md").read_text()
    assert EXAMPLES
    for path in EXAMPLES:
        assert f"({path.name})" in listing
