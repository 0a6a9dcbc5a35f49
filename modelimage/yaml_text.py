"""YAML from anyone, parsed to plain values. Independent of what the documents mean.

PyYAML's safe loader constructs no objects, but it leaves errors of Python's own to its caller: deep nesting, digits and
dates that don't convert. Aliases make a text of a kilobyte a document of gigabytes for whoever walks it, or an endless
one; merge keys do so while it is parsed.
"""

from __future__ import annotations

from typing import Any, Final

import yaml

from modelimage.errors import InvalidInput

# Aliases counted as often as they occur. A cluster's largest objects have some thousands.
_MOST_VALUES: Final = 1_000_000
# Pairs that merge keys copy; each costs microseconds.
_MOST_MERGED: Final = 100_000
_NUMBERS: Final = frozenset({"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"})
# Numbers in base 60 (`1:59:59`) cost time in proportion to the square of their length.
_LONGEST_NUMBER: Final = 100  # characters


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader, whose only errors are YAMLError and RecursionError, within the time of the text's length.

    A loader for a composed node needs no text: `Loader("").construct_document(node)`.
    """

    def __init__(self, stream: str | bytes) -> None:
        super().__init__(stream)
        self._merged = 0
        self._flat: set[int] = set()

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            kind = node.tag.rpartition(":")[2]
            raise _error(node, f"no value of the type {kind[:40]}: {str(error)[:200]}") from error

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        if node.tag in _NUMBERS and len(node.value) > _LONGEST_NUMBER:
            raise _error(node, f"a number of {len(node.value)} characters")
        return super().construct_scalar(node)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        if id(node) in self._flat:
            return
        merged = [value for key, value in node.value if key.tag == "tag:yaml.org,2002:merge"]
        for value in merged:
            several = isinstance(value, yaml.SequenceNode)
            for each in value.value if several else [value]:
                if isinstance(each, yaml.MappingNode):
                    self.flatten_mapping(each)
                    self._merged += len(each.value)
                # Counted before the pairs are copied: each level may multiply those of the level below.
                if self._merged > _MOST_MERGED:
                    raise _error(node, "merge keys make too many values")
        super().flatten_mapping(node)
        self._flat.add(id(node))


def _error(node: yaml.Node, problem: str) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def parse_yaml(text: str | bytes, *, what: str) -> list[Any]:
    """The documents of a text, empty ones left out. `what` names it in the error. Raises InvalidInput."""
    try:
        found = yaml.load_all(text, Loader)
        documents = [each for each in found if each is not None]
        counted = _count(documents, {})
    except yaml.MarkedYAMLError as error:
        # PyYAML's own text has several lines, of a file whose name it doesn't know.
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise InvalidInput(f"{what} is not valid YAML: {where}{error.problem}") from error
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
