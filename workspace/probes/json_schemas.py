"""JSON Schemas from anyone: the keywords that describe answers, checked within a budget of steps.

Nothing is fetched and nothing refers to anything: `$ref` is refused, so no schema is longer than its text. A keyword
that isn't known here is refused too, instead of passing what it was meant to forbid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from modelimage.errors import InvalidInput
from workspace.probes.patterns import Pattern
from workspace.probes.steps import StepBudget

DEEPEST: Final = 16
_NOTES: Final = frozenset(
    {"$schema", "$id", "$comment", "title", "description", "default", "examples"}
)
_TYPES: Final[Mapping[str, Callable[[Any], bool]]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    # To Python a bool is an int; to JSON Schema it is no number.
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    # Since draft 6 a number without a fraction is an integer, however it is written.
    "integer": lambda value: (
        (not isinstance(value, bool) and isinstance(value, int)) or (isinstance(value, float) and value.is_integer())
    ),
}  # fmt: skip
_INNER: Final = ("items", "not", "additionalProperties")
_LISTS: Final = ("anyOf", "allOf", "oneOf")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_bound(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def _is_type(value: Any) -> bool:
    return all(isinstance(each, str) and each in _TYPES for each in _listed(value))


def _is_list_of_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


_COUNTS: Final = (
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
)
_BOUNDS: Final = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
# Whether a keyword's value has the right form; inner schemas are checked by themselves.
_SOUND: Final[Mapping[str, Callable[[Any], bool]]] = {
    "type": _is_type,
    "enum": lambda value: isinstance(value, list),
    "const": lambda value: True,
    "properties": lambda value: isinstance(value, dict),
    "required": _is_list_of_names,
    "pattern": lambda value: isinstance(value, str),
    **dict.fromkeys(_INNER, lambda value: True),
    **dict.fromkeys(_LISTS, lambda value: isinstance(value, list) and bool(value)),
    **dict.fromkeys(_COUNTS, _is_count),
    **dict.fromkeys(_BOUNDS, _is_bound),
}
Schema = bool | dict[str, Any]


class JsonSchema:
    """A checked schema. Raises InvalidInput for one that uses other keywords, or uses them wrongly."""

    def __init__(self, schema: Schema) -> None:
        self._patterns: dict[str, Pattern] = {}
        self._schema = schema
        self._check(schema, DEEPEST)

    def accepts(self, value: object, steps: StepBudget) -> bool:
        """Whether a JSON value is valid. Raises TooManySteps."""
        return self._accepts(self._schema, value, steps)

    def _check(self, schema: object, deeper: int) -> None:
        if isinstance(schema, bool):
            return
        if not isinstance(schema, dict):
            raise InvalidInput("a JSON schema is a mapping, true or false")
        if not deeper:
            raise InvalidInput(f"a JSON schema is nested at most {DEEPEST} deep")
        for keyword, value in schema.items():
            if keyword in _NOTES:
                continue
            if keyword not in _SOUND:
                known = ", ".join(sorted(_SOUND))
                raise InvalidInput(
                    f"the JSON schema uses {str(keyword)[:40]!r}, which isn't supported",
                    hint=f"Use: {known}.",
                )
            if not self._is_sound(keyword, value, deeper):
                raise InvalidInput(f"the JSON schema's {keyword} isn't what it should be")

    def _is_sound(self, keyword: str, value: Any, deeper: int) -> bool:
        # Compiled now, so that a pattern which can't be used is refused with the schema.
        if keyword == "pattern" and isinstance(value, str):
            self._patterns[value] = Pattern(value)
        if keyword in _INNER:
            self._check(value, deeper - 1)
        elif keyword in _LISTS and isinstance(value, list):
            for each in value:
                self._check(each, deeper - 1)
        elif keyword == "properties" and isinstance(value, dict):
            for each in value.values():
                self._check(each, deeper - 1)
        return _SOUND[keyword](value)

    def _accepts(self, schema: Schema, value: Any, steps: StepBudget) -> bool:
        steps.spend()
        if isinstance(schema, bool):
            return schema
        return all(
            self._holds(keyword, argument, schema, value, steps)
            for keyword, argument in schema.items()
            if keyword not in _NOTES
        )

    def _holds(
        self, keyword: str, argument: Any, schema: Mapping[str, Any], value: Any, steps: StepBudget
    ) -> bool:
        steps.spend()
        if keyword == "type":
            steps.spend(len(_listed(argument)))
            return any(_TYPES[each](value) for each in _listed(argument))
        if keyword in ("const", "enum"):
            allowed = argument if keyword == "enum" else [argument]
            return any(_same(each, value, steps) for each in allowed)
        if keyword == "not":
            return not self._accepts(argument, value, steps)
        if keyword in _LISTS:
            # oneOf needs their number, so all are tried.
            fitting = sum(self._accepts(each, value, steps) for each in argument)
            enough = {
                "anyOf": fitting > 0,
                "allOf": fitting == len(argument),
                "oneOf": fitting == 1,
            }
            return enough[keyword]
        return self._of_its_type(keyword, argument, schema, value, steps)

    def _of_its_type(
        self, keyword: str, argument: Any, schema: Mapping[str, Any], value: Any, steps: StepBudget
    ) -> bool:
        """Keywords that say something of values of one type only."""
        if isinstance(value, dict):
            return self._object(keyword, argument, schema, value, steps)
        if isinstance(value, list):
            return self._array(keyword, argument, value, steps)
        if isinstance(value, str):
            return self._string(keyword, argument, value, steps)
        return not _TYPES["number"](value) or _number(keyword, argument, value)

    def _object(
        self, keyword: str, argument: Any, schema: Mapping[str, Any], value: dict[str, Any], steps: StepBudget
    ) -> bool:  # fmt: skip
        if keyword == "required":
            steps.spend(len(argument))
            return all(each in value for each in argument)
        # Each keyword below looks at every member.
        steps.spend(len(value))
        if keyword == "properties":
            steps.spend(len(argument))
            return all(
                self._accepts(inner, value[name], steps)
                for name, inner in argument.items()
                if name in value
            )
        if keyword == "additionalProperties":
            named = schema.get("properties", {})
            return all(
                self._accepts(argument, each, steps)
                for name, each in value.items()
                if name not in named
            )
        return _size(keyword, argument, len(value), "Properties")

    def _array(self, keyword: str, argument: Any, value: list[Any], steps: StepBudget) -> bool:
        if keyword == "items":
            return all(self._accepts(argument, each, steps) for each in value)
        return _size(keyword, argument, len(value), "Items")

    def _string(self, keyword: str, argument: Any, value: str, steps: StepBudget) -> bool:
        # Searched: JSON Schema's patterns aren't anchored.
        if keyword == "pattern":
            return self._patterns[argument].search(value, steps)
        # In characters of Unicode (RFC 8259), which is what Python counts.
        return _size(keyword, argument, len(value), "Length")


def _size(keyword: str, argument: Any, size: int, what: str) -> bool:
    if keyword == f"min{what}":
        return bool(size >= argument)
    return bool(size <= argument) if keyword == f"max{what}" else True


def _number(keyword: str, argument: Any, value: float) -> bool:
    if keyword == "minimum":
        return bool(value >= argument)
    if keyword == "maximum":
        return bool(value <= argument)
    if keyword == "exclusiveMinimum":
        return bool(value > argument)
    return bool(value < argument) if keyword == "exclusiveMaximum" else True


def _same(one: Any, other: Any, steps: StepBudget) -> bool:
    """Equality of JSON values: to Python, True is 1."""
    steps.spend()
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(
            _same(one[each], other[each], steps) for each in one
        )
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other, [steps] * len(one)))
    # JSON compares numbers by value: 1 and 1.0 are the same.
    return bool(one == other)
