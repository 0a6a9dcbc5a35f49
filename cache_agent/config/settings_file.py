"""Reads the agent's settings: the file's text, the environment and the command line. Every error says where to look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import yaml
from pydantic import ValidationError

from cache_agent.api.document_errors import compose, line_of, sentence
from cache_agent.config import AgentConfig
from modelimage.errors import InvalidInput
from modelimage.yaml_text import parse_yaml

PREFIX: Final = "WEIGHTYARD_"
_HINT: Final = (
    "`weightyard help settings` lists them; `weightyard agent --print-schema` has their types."
)


def parse_config(
    text: str,
    environ: Mapping[str, str],
    overrides: Mapping[str, Any],
    *,
    name: str = "the settings file",
) -> AgentConfig:
    """Parse settings: the file's text, overridden by the environment, overridden by flags. Raises InvalidInput.

    `WEIGHTYARD_FETCH__STREAMS=8` sets `fetch.streams`; its value is YAML. `overrides` has dotted names; None: unset.
    `name` is the file's, in messages.
    """
    document, node = _document(text, name)
    # Setting -> where it was given, for those that override the file.
    given: dict[str, str] = {}
    # Only names of settings: other variables share the prefix (WEIGHTYARD_CACHE).
    for variable, value in sorted(environ.items()):
        path = variable.removeprefix(PREFIX).lower().split("__")
        if variable.startswith(PREFIX) and path[0] in AgentConfig.model_fields:
            _set(document, path, _yaml(value, variable))
            given[".".join(path)] = variable
    for dotted, value in overrides.items():
        if value is not None:
            _set(document, dotted.split("."), value)
            given[dotted] = "--" + dotted.replace(".", "-").replace("_", "-")
    try:
        return AgentConfig.model_validate(document)
    except ValidationError as error:
        told = error.errors(include_url=False, include_context=True)
        places = [_place(each["loc"], node, name, given) for each in told]
        lines = [
            f"{place}: {_unrepeated(sentence(each, AgentConfig), place, given)}"
            for place, each in zip(places, told, strict=True)
        ]
        raise InvalidInput("\n".join(lines), hint=_HINT) from error


def _place(
    path: Sequence[str | int], node: yaml.Node | None, name: str, given: Mapping[str, str]
) -> str:
    """Where a setting was given: the variable or option that overrides the file, else the file's line."""
    dotted = ".".join(str(step) for step in path)
    for setting, place in given.items():
        # A section may be wrong by one of its settings, a setting by a part of its value.
        if f"{dotted}.".startswith(f"{setting}.") or f"{setting}.".startswith(f"{dotted}."):
            return place
    return name if node is None else f"{name}:{line_of(node, path)}"


def _unrepeated(text: str, place: str, given: Mapping[str, str]) -> str:
    """The sentence without the setting's name where its place, an option or a variable, says it already."""
    named = next((setting for setting, at in given.items() if at == place), None)
    rest = text.removeprefix(named or text)
    # What is left names a part of its value: `[0]`, `.docker.io`.
    return rest.lstrip(":. ") if rest.startswith((": ", ".", "[")) else text


def _document(text: str, name: str) -> tuple[dict[str, Any], yaml.Node | None]:
    nodes = compose(text, name, hint=_HINT)
    if not nodes:
        return {}, None
    document = _yaml(text, name) if len(nodes) == 1 else None
    if not isinstance(document, dict):
        raise InvalidInput(f"{name} isn't one YAML mapping: write `name: value` lines", hint=_HINT)
    return document, nodes[0]


def _yaml(text: str, what: str) -> Any:
    documents = parse_yaml(text, what=what)
    if len(documents) > 1:
        raise InvalidInput(f"{what} has more than one YAML document", hint=_HINT)
    return documents[0] if documents else None


def _set(document: dict[str, Any], path: list[str], value: Any) -> None:
    for name in path[:-1]:
        inner = document.get(name)
        document[name] = document = dict(inner) if isinstance(inner, Mapping) else {}
    document[path[-1]] = value
