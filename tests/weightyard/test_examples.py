"""Every file of examples/ is what it says it is: each kind is checked by what reads it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cache_agent.config import AgentConfig
from cache_agent.prewarm.documents import parse_documents
from tests.weightyard.tasks.pages import REPOSITORY
from tests.workspace.samples import record
from workspace.document import parse_workspace
from workspace.hardware import requested_hardware
from workspace.launch_plan import choose_variant
from workspace.probes.probe_set import Expectation, parse_probes

FOLDER = REPOSITORY / "examples"
EXAMPLES = sorted(path for path in FOLDER.iterdir() if path.name != "README.md")


def check_workspace(path: Path) -> None:
    workspace = parse_workspace(path.read_text(), name=path.name)
    hardware = requested_hardware(workspace.spec.resources)
    records = {
        v: record(v, weight_bytes=size) for v, size in (("bf16", 16 * 10**9), ("int8", 9 * 10**9))
    }
    assert choose_variant(workspace, records, hardware).variant in records


def check_cached_model(path: Path) -> None:
    parsed = parse_documents(path.read_text(), where=path.name, base=path.parent)
    assert (len(parsed.models), parsed.refused) == (1, ())


def check_workflow(path: Path) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema"]
    done = subprocess.run(
        [*command, "vendor.github-workflows", path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def check_settings(path: Path) -> None:
    assert AgentConfig.model_validate(yaml.safe_load(path.read_text()))


def check_probes(path: Path) -> None:
    found = parse_probes(path.read_text(), what=path.name)
    assert {each.expectation for each in found.probes} == set(Expectation)


def kind_of(document: Any) -> str:
    if "probes" in document:
        return "probes"
    return str(document.get("kind", "workflow" if "jobs" in document else "settings"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_read_by_what_they_are_for(path: Path) -> None:
    if path.suffix != ".yaml":
        assert path.name == "evaluation.txt"  # read by the page about CI
        return
    kind = kind_of(yaml.safe_load(path.read_text()))
    checks = {
        "Workspace": check_workspace, "CachedModel": check_cached_model,
        "workflow": check_workflow, "settings": check_settings, "probes": check_probes,
    }  # fmt: skip
    checks[kind](path)


def test_examples_are_listed() -> None:
    listing = (FOLDER / "README.md").read_text()
    assert EXAMPLES
    assert [path.name for path in EXAMPLES if f"({path.name})" not in listing] == []
