"""Errors of YAML documents that users write: each names line and field, and suggests the likely intent.

Takes text, never opens a file. The text is composed to YAML nodes first: only nodes carry line numbers and duplicate
keys, which a plain load drops.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from modelimage.errors import InvalidInput
from modelimage.yaml_text import Loader

_LONGEST_WORD: Final = 100  # that is compared with the known ones
# By pydantic's kind of error: its own words name Python's types.
_EXPECTED: Final[Mapping[str, str]] = {
    "path_type": "expected a path",
    **dict.fromkeys(("tuple_type", "list_type", "set_type", "frozen_set_type"), "expected a list"),
    "string_type": "expected text, in quotes where it looks like a number or true",
    **dict.fromkeys(("bool_type", "bool_parsing"), "expected true or false"),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "expected a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "expected a number"),
}
# The same with the bound.
_BOUNDS: Final[Mapping[str, str]] = {
    "less_than_equal": "expected at most {le}",
    "less_than": "expected less than {lt}",
    "greater_than_equal": "expected at least {ge}",
    "greater_than": "expected more than {gt}",
    "too_short": "expected at least {min_length} of them",
    "too_long": "expected at most {max_length} of them",
}


def compose(text: str, name: str, *, hint: str) -> list[yaml.Node]:
    """The documents of a YAML stream, without empty ones. `name` is the file's, in messages. Raises InvalidInput."""
    try:
        nodes = [node for node in yaml.compose_all(text, Loader) if not _is_empty(node)]
        for node in nodes:
            _check_keys(node, name, seen=set())
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise InvalidInput(f"{name}:{line}: not valid YAML: {error.problem}", hint=hint) from error
    # Deeply nested input exhausts the stack in PyYAML's recursive composer.
    except (yaml.YAMLError, RecursionError) as error:
        raise InvalidInput(f"{name}: not valid YAML: {error}", hint=hint) from error
    return nodes


def construct(node: yaml.Node, name: str, *, hint: str | None = None) -> Any:
    """The value of a composed document. Raises InvalidInput."""
    try:
        return Loader("").construct_document(node)
    except (yaml.YAMLError, RecursionError) as error:
        raise InvalidInput(f"{name}: not valid YAML: {error}", hint=hint) from error


def values_of(text: str, name: str) -> list[Any]:
    """The values of a YAML stream's documents, where no error names a place in them. Raises InvalidInput."""
    return [construct(node, name) for node in compose(text, name, hint="")]


def _is_empty(node: yaml.Node | None) -> bool:
    """Whether a document of the stream is empty (nothing between two `---`)."""
    return node is None or node.tag == "tag:yaml.org,2002:null"


def _check_keys(node: yaml.Node, name: str, *, seen: set[int]) -> None:
    """Refuses duplicate keys in a mapping; plain YAML loading silently keeps the last."""
    # Aliases make the node graph shared or cyclic: each node is visited once.
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check_keys(item, name, seen=seen)
    if isinstance(node, yaml.MappingNode):
        keys: set[str] = set()
        for key, value in node.value:
            # A list or mapping as a key is refused where values are made.
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in keys:
                raise InvalidInput(
                    f"{name}:{key.start_mark.line + 1}: the key {key.value!r} occurs twice",
                    hint="Remove one of the two.",
                )
            keys.add(key.value)
            _check_keys(value, name, seen=seen)


def line_of(node: yaml.Node, path: Sequence[str | int]) -> int:
    """The 1-based line of the deepest existing node on the path."""
    line = node.start_mark.line
    for step in path:
        if isinstance(node, yaml.MappingNode):
            found = next(((k, v) for k, v in node.value if k.value == step), None)
            # A missing field has no line: the object that lacks it is shown.
            if found is None:
                break
            line, node = found[0].start_mark.line, found[1]
        elif (
            isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value)
        ):
            node = node.value[step]
            line = node.start_mark.line
    return line + 1


def lines_of(error: ValidationError, node: yaml.Node, name: str, model: type[BaseModel]) -> str:
    """All validation errors of a document of `model`, a line each, with the places in the file."""
    return "\n".join(
        f"{name}:{line_of(node, each['loc'])}: {sentence(each, model)}"
        for each in error.errors(include_url=False)
    )


def sentence(error: ErrorDetails, model: type[BaseModel]) -> str:
    """A validation error of `model` as one sentence, with the document's field names."""
    # pydantic marks errors of mapping keys with "[key]", which isn't a field of the document.
    path = [step for step in error["loc"] if step != "[key]"]
    field = _dotted(path)
    kind, message = error["type"], error["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        return f"unknown field {field}; {_meant(path, model)}"
    if kind == "missing":
        return f"{field} is missing"
    if kind in ("model_type", "model_attributes_type", "dict_type", "mapping_type"):
        known = _fields_at(path, model)
        of = f" with the fields {', '.join(sorted(known))}" if known else ""
        return f"{field}: expected a mapping{of}"
    if kind == "is_instance_of":
        return f"{field}: {_choices(path, error.get('input'), message, model)}"
    told = _EXPECTED.get(kind) or f"{message[:1].lower()}{message[1:]}"
    if kind in _BOUNDS and "ctx" in error:
        told = _BOUNDS[kind].format(**error["ctx"])
    if kind.startswith("int_") and field.lower().endswith("seconds"):
        told = "expected a whole number of seconds, such as 300"
    return f"{field}: {told}" if field else told


def _meant(path: Sequence[str | int], model: type[BaseModel]) -> str:
    """What an unknown field may stand for: a field with a similar name here, or one of its name elsewhere."""
    known, given = _fields_at(path[:-1], model), str(path[-1])
    # Help and messages write a nested field with dots, and a section's name is easily forgotten.
    whole = tuple(given.split("."))
    nested = [each for each in _paths(model, ()) if each[-len(whole) :] == whole]
    close = difflib.get_close_matches(given, known, n=1)
    # A field that is elsewhere by this very name is meant rather than one here that looks like it.
    if close and not (nested and "." in given) and len(nested) != 1:
        return f"did you mean {close[0]!r}?"
    if len(nested) == 1:
        return f"did you mean `{_flow(nested[0])}`?"
    return f"known here: {', '.join(sorted(known))}"


def _flow(path: Sequence[str]) -> str:
    """The field in YAML: `fetch: {streams: …}`."""
    text = "…"
    for depth, name in enumerate(reversed(path)):
        text = f"{name}: {text}" if depth == 0 else f"{name}: {{{text}}}"
    return text


def _paths(model: type[BaseModel], above: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Every field of the schema outside of lists, sections included."""
    for name, field in model.model_fields.items():
        path = (*above, field.alias or name)
        yield path
        kind = _plain(field.annotation)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _paths(kind, path)


def _choices(path: Sequence[str | int], given: object, message: str, model: type[BaseModel]) -> str:
    field = _field_type(path, model)
    enum = next((each for each in (field, *get_args(field)) if hasattr(each, "__members__")), None)
    if enum is None:
        return message
    values = {str(member.value).lower(): str(member.value) for member in enum}
    close = difflib.get_close_matches(str(given)[:_LONGEST_WORD].lower(), values, n=1)
    meant = f"; did you mean {values[close[0]]!r}?" if close else ""
    return f"expected one of {', '.join(values.values())}{meant}"


def _dotted(path: Sequence[str | int]) -> str:
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def _fields_at(path: Sequence[str | int], model: type[BaseModel]) -> list[str]:
    """The field names that the schema allows at a path."""
    kind = _field_type(path, model)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return [field.alias or name for name, field in kind.model_fields.items()]
    return []


def _field_type(path: Sequence[str | int], model: type[BaseModel]) -> Any:
    kind: Any = model
    for step in path:
        if isinstance(step, int):
            kind = get_args(kind)[0]
        elif isinstance(kind, type) and issubclass(kind, BaseModel):
            kind = next(
                (
                    _plain(field.annotation)
                    for name, field in kind.model_fields.items()
                    if (field.alias or name) == step
                ),
                None,
            )
    return kind


def _plain(annotation: Any) -> Any:
    """`T` for `T | None`; any other annotation unchanged."""
    parts = [part for part in get_args(annotation) if part is not type(None)]
    optional = type(None) in get_args(annotation)
    return parts[0] if optional and len(parts) == 1 else annotation
