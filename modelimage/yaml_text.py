"""YAML from anyone, parsed to plain values. Independent of what the documents mean.

PyYAML's safe loader constructs no objects, but it leaves errors of Python's own to its caller: deep nesting, digits and
dates that don't convert. Aliases make a text of a kilobyte a document of gigabytes for whoever walks it, or an endless
one.
"""

from __future__ import annotations

from typing import Any, Final

import yaml

from modelimage.errors import InvalidInput

# Aliases counted as often as they occur. A cluster's largest objects have some thousands.
_MOST_VALUES: Final = 1_000_000


def parse_yaml(text: str | bytes, *, what: str) -> list[Any]:
    """The documents of a text, empty ones left out. `what` names it in the error. Raises InvalidInput."""
    try:
        documents = [each for each in yaml.safe_load_all(text) if each is not None]
        counted = _count(documents, {})
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:500]
        raise InvalidInput(f"{what} is not valid YAML: {reason}") from error
    if counted > _MOST_VALUES:
        raise InvalidInput(f"{what} has too many values")
    return documents


def _count(value: object, known: dict[int, int]) -> int:
    """How many values a walk meets. Raises RecursionError for one that contains itself."""
    if not isinstance(value, dict | list | tuple | set):
        return 1
    if id(value) not in known:
        inner = (*value, *value.values()) if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_count(each, known) for each in inner)
    return known[id(value)]
