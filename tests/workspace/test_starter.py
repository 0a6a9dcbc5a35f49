"""The Workspace that `init` writes: it parses to what was asked for, and each line that a user may uncomment parses."""

from __future__ import annotations

import re
from typing import Any

import pytest

from workspace.document import parse_workspace
from workspace.runtime_spec import Runtime
from workspace.schema import Model, Resources, Workspace
from workspace.starter import starter

OPTIONAL = re.compile(r"^( *)#(\w+:.*)$")


def document(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "weightyard.dev/v1alpha1", "kind": "Workspace", "metadata": {"name": "x"},
        "spec": {"model": {"hub": "org/name"}, **spec},
    }  # fmt: skip


@pytest.mark.parametrize(
    "given",
    [document(), document(resources={"gpus": 0}, replicas=2), document(runtime={"port": 1, "args": ["-a"]})],
)  # fmt: skip
def test_it_parses_to_what_was_asked_for(given: dict[str, Any]) -> None:
    text = starter(given, file="x.yaml")
    assert parse_workspace(text, name="x") == Workspace.model_validate(given)


@pytest.mark.parametrize("file", ["a\nkind: Other", "a\x85b", "a b;c", "$(id).yaml"])
def test_a_files_name_is_part_of_comments(file: str) -> None:
    text = starter(document(), file=file)
    assert parse_workspace(text, name="x") == Workspace.model_validate(document())
    assert f"up {file} " not in text


def test_every_optional_line_is_valid() -> None:
    """Uncommented by itself, with its section, and without what excludes it."""
    lines = starter(document(), file="x.yaml").splitlines()
    optional = [i for i, line in enumerate(lines) if OPTIONAL.match(line)]
    tried = 0
    for index in optional:
        match = OPTIONAL.match(lines[index])
        assert match is not None
        indent, field = match[1], match[2]
        if field.endswith(":"):
            continue  # a section, which needs a field
        edited = list(lines)
        edited[index] = indent + field
        # Where nothing of a section is set, its own line is a comment, too.
        above = (i for i in range(index, 0, -1) if len(indent) == 4 and lines[i][:3] != "   ")
        section = next((i for i in above if lines[i].startswith("  #")), None)
        if section is not None:
            edited[section] = edited[section].replace("#", "")
        if field.startswith(("image:", "s3:")) and section is None:
            edited = [line for line in edited if not line.startswith("    hub:")]
        parse_workspace("\n".join(edited), name=field)
        tried += 1
    assert tried > 25


def test_every_field_has_a_default_or_an_example() -> None:
    assert "null" not in starter(document(), file="x.yaml")


def test_no_field_is_left_out() -> None:
    text = starter(document(), file="x.yaml")
    for section in (Model, Runtime, Resources):
        for name, info in section.model_fields.items():
            assert re.search(rf"^ {{4}}#?{info.alias or name}:", text, re.MULTILINE), name
