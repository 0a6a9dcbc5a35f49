"""Parses YAML text to Workspaces. Every error names line and field and suggests the likely intent.

Takes text, never opens a file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import yaml
from pydantic import ValidationError

from cache_agent.api.document_errors import compose, construct, lines_of, sentence
from modelimage.bounds import MOST_DOCUMENT_BYTES
from modelimage.errors import InvalidInput
from workspace.field_types import STORED
from workspace.schema import Workspace

_HINT = "`weightyard help workspace` shows the fields; `weightyard init` writes a document to start from."
# The fields that have a topic of their own.
_TOPICS: Final[Mapping[tuple[str, ...], str]] = {
    ("spec", "rollout"): "rollouts",
    ("spec", "resources", "provisioning"): "nodes",
    ("spec", "template"): "template",
}


def parse_workspaces(text: str, *, name: str) -> tuple[Workspace, ...]:
    """All Workspaces of a YAML stream. `name` is the file name used in messages. Raises InvalidInput."""
    # Bounded before parsing: YAML aliases and nesting make large input expensive.
    if len(text) > MOST_DOCUMENT_BYTES:
        raise InvalidInput(f"{name} has more than {MOST_DOCUMENT_BYTES >> 20} MiB", hint=_HINT)
    nodes = compose(text, name, hint=_HINT)
    if not nodes:
        raise InvalidInput(f"{name} holds no document", hint=_HINT)
    return tuple(workspace_in(node, name) for node in nodes)


def parse_workspace(text: str, *, name: str, only: str | None = None) -> Workspace:
    """The only Workspace of a YAML stream, or the one named `only`. Raises InvalidInput."""
    found = parse_workspaces(text, name=name)
    chosen = [each for each in found if only is None or each.name == only]
    if len(chosen) == 1:
        return chosen[0]
    held = ", ".join(each.name for each in found)
    if only is not None and not chosen:
        raise InvalidInput(f"{name} holds no workspace {only!r}; it holds: {held}")
    raise InvalidInput(
        f"{name} holds several workspaces: {held}",
        hint="Choose one with --name, or give its name in place of the file.",
    )


def workspace_in(node: yaml.Node, name: str) -> Workspace:
    """The Workspace of one document of a file. Raises InvalidInput, a line for each problem."""
    document = construct(node, name, hint=_HINT)
    if not isinstance(document, dict):
        raise InvalidInput(
            f"{name}:{node.start_mark.line + 1}: a Workspace is a mapping, not {_kind(document)}",
            hint=_HINT,
        )
    try:
        return Workspace.model_validate(document)
    except ValidationError as error:
        places = [each["loc"] for each in error.errors(include_url=False)]
        raise InvalidInput(lines_of(error, node, name, Workspace), hint=_hint(places)) from error


def _hint(places: Sequence[Sequence[str | int]]) -> str:
    """Where the fields at some places of a document are shown."""
    for field, topic in _TOPICS.items():
        if all(tuple(place[: len(field)]) == field for place in places):
            return f"`weightyard help {topic}` shows the fields."
    return _HINT


def _kind(value: object) -> str:
    return "empty" if value is None else type(value).__name__


def workspace_of(document: Mapping[str, Any], *, to_be_stored: bool = False) -> Workspace:
    """Parses the Workspace from an API server's document, which has more fields than a file. Raises InvalidInput.

    A field without effect is refused only in one that is `to_be_stored` (again): see `refuse_without_effect`.
    """
    metadata = document["metadata"]
    own = {
        name: metadata[name]
        for name in ("name", "namespace", "labels", "annotations")
        if name in metadata
    }
    try:
        return Workspace.model_validate(
            {
                "apiVersion": document["apiVersion"],
                "kind": document["kind"],
                "metadata": own,
                "spec": document.get("spec"),
            },
            context=None if to_be_stored else STORED,
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InvalidInput(sentence(first, Workspace), hint="Correct the Workspace.") from error
