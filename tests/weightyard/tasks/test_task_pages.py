"""Every command of every task page is run, in the surroundings that the page states."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from tests.weightyard.local import Terminal
from tests.weightyard.tasks.pages import PAGES, REPOSITORY, placed, read_page
from tests.weightyard.tasks.surroundings import Surroundings
from tests.workspace import openapi
from weightyard.crds import definitions

# What a page's commands must have printed.
PROMISES = {
    "air-gap": ["is intact", "team/smollm2:v1"],
    "ci": ["top-1 agreement", "is intact", "vnd.cyclonedx+json"],
    "coming-from": ["is intact", "smollm2: stopped", "ai/smollm2:latest"],
    "first-cluster": ["workspace/smollm2 created"],
    "laptop": ["is ready at", " Paris", "smollm2: stopped"],
    "private-models": ["private:v1", "secret/registry created"],
}
MEASURED = {"ci": [pytest.mark.torch, pytest.mark.slow]}


@pytest.fixture
def here(tmp_root: Path) -> Iterator[Surroundings]:
    with ExitStack() as stack:
        terminal = Terminal(tmp_root, fake=None)
        terminal.extra["PATH"] = os.pathsep.join(
            [str(Path(sys.executable).parent), terminal.environment()["PATH"]]
        )
        terminal.extra["PYTHONPATH"] = str(REPOSITORY)
        stack.callback(terminal.close)
        yield Surroundings(terminal, stack)


@pytest.mark.servers
@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=MEASURED.get(path.stem, []), id=path.stem) for path in PAGES],
)
def test_commands_of_a_page(path: Path, here: Surroundings) -> None:
    page = read_page(path.read_text())
    here.provide(page.surroundings)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", placed(page.script, here.names)],
        cwd=here.directory, env=here.terminal.environment(), capture_output=True, text=True,
        stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    said = done.stdout + done.stderr
    assert [each for each in PROMISES[path.stem] if each not in said] == []
    assert list(problems(here.applied)) == []


def problems(applied: Path) -> Iterator[str]:
    """What an API server would refuse of the documents that a page applied."""
    own = {
        each["spec"]["names"]["kind"]: each["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        for each in definitions().values()
    }
    for line in applied.read_text().splitlines() if applied.exists() else []:
        document = json.loads(line)
        kind = document["kind"]
        if kind in own:
            found = Draft202012Validator(own[kind]).iter_errors(document)
            yield from (f"{kind}: {each.json_path}: {each.message}" for each in found)
        elif kind != "CustomResourceDefinition":
            yield from (f"{kind}: {each}" for each in openapi.problems(document, openapi.NEWEST))


def test_every_task_has_a_page_and_an_example() -> None:
    assert {path.stem for path in PAGES} == PROMISES.keys()
    listed = (REPOSITORY / "docs" / "README.md").read_text()
    for path in PAGES:
        assert f"(tasks/{path.name})" in listed
        assert "](../../examples/" in path.read_text(), path.name


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("# A page\n```bash\ntrue\n```\n", "surroundings"),
        ("<!-- surroundings: model -->\nProse.\n", "no commands"),
        (
            "<!-- surroundings: model -->\n```bash\ntrue\n```\n\n    weightyard ls\n",
            "weightyard ls",
        ),
        ("<!-- surroundings: model -->\n```bash\ntrue\n```\n```sh\nfalse\n```\n", "false"),
    ],
)
def test_a_page_with_commands_that_nobody_runs_is_refused(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read_page(text)


def test_pages_name_their_settings_as_yaml() -> None:
    """Every yaml block of a page parses."""
    for path in PAGES:
        for block in path.read_text().split("```yaml\n")[1:]:
            assert yaml.safe_load(block.partition("```")[0])
