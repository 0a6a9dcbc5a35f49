"""GitHub's workflows: valid by GitHub's schema, least rights, versions named, scripts that a shell can read."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
Json = dict[str, Any]

workflows = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


def jobs(path: Path) -> list[Json]:
    return list(yaml.safe_load(path.read_text())["jobs"].values())


def steps(path: Path) -> list[Json]:
    return [step for job in jobs(path) for step in job["steps"]]


def test_github_accepts_them() -> None:
    command = [
        sys.executable,
        "-m",
        "check_jsonschema",
        "--builtin-schema",
        "vendor.github-workflows",
    ]
    done = subprocess.run([*command, *WORKFLOWS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@workflows
def test_rights_are_named_and_time_is_bounded(path: Path) -> None:
    assert yaml.safe_load(path.read_text())["permissions"] == {"contents": "read"}
    assert all(job["timeout-minutes"] <= 120 for job in jobs(path))


@workflows
def test_actions_are_named_by_commit_with_their_version_beside_it(path: Path) -> None:
    """A tag can be moved to other code, which would run with the job's rights."""
    used = re.findall(r"uses:\s*(.*)", path.read_text())
    assert len(used) == sum("uses" in step for step in steps(path))
    for each in used:
        assert re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", each)


@workflows
def test_scripts_are_read_by_a_shell(path: Path) -> None:
    for step in steps(path):
        if "run" in step:
            done = subprocess.run(
                ["bash", "-n"], input=step["run"], text=True, capture_output=True, check=False
            )
            assert (done.returncode, done.stderr) == (0, ""), step.get("name")


@workflows
def test_scripts_take_nothing_from_strangers(path: Path) -> None:
    """What others may choose (titles, branch names) never becomes part of a script's text."""
    for step in steps(path):
        for expression in re.findall(r"\$\{\{(.*?)\}\}", step.get("run", "")):
            assert re.match(r"\s*(matrix|steps|env|github\.(sha|repository|actor))\b", expression)


@workflows
def test_targets_and_files_that_are_named_exist(path: Path) -> None:
    targets = set(
        re.findall(r"^FROM .* AS (\S+)$", (ROOT / "Dockerfile.agent").read_text(), re.MULTILINE)
    )
    for job in jobs(path):
        named = job.get("strategy", {}).get("matrix", {}).get("target", [])
        assert set(named) <= targets
    for step in steps(path):
        for target in re.findall(r"\bmake ([a-z-]+)", step.get("run", "")):
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
