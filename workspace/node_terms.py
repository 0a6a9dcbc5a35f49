"""Node selector terms: built, combined, and matched against a Node's labels as the scheduler does. Pure.

A term is a list of requirements that must all hold; of several terms one must hold. No terms mean any node.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from modelimage.bounds import parse_count

Json = dict[str, Any]
Term = list[Json]

# Label values are at most this long, and so are the numbers that are compared.
MOST: Final = 10**62


def is_in(key: str, values: Iterable[str]) -> Json:
    return {"key": key, "operator": "In", "values": list(values)}


def is_not_in(key: str, values: Iterable[str]) -> Json:
    """Also holds where the label is missing."""
    return {"key": key, "operator": "NotIn", "values": list(values)}


def is_above(key: str, value: int) -> Json:
    return {"key": key, "operator": "Gt", "values": [str(value)]}


def both(first: Sequence[Term], second: Sequence[Term]) -> list[Term]:
    """The terms of which one holds where one of each side holds."""
    # A side without terms demands nothing, so that the other's are all.
    if not first or not second:
        return [list(term) for term in (*first, *second)]
    return [[*mine, *theirs] for mine in first for theirs in second]


def match(terms: Sequence[Term], labels: Mapping[str, str]) -> bool:
    """Whether a Node with these labels is selected."""
    return not terms or any(all(_holds(each, labels) for each in term) for term in terms)


def _holds(requirement: Json, labels: Mapping[str, str]) -> bool:
    value = labels.get(requirement["key"])
    values: Sequence[str] = requirement.get("values", ())
    match requirement["operator"]:
        case "In":
            return value in values
        case "NotIn":
            return value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt" | "Gte" | "Lt" | "Lte" as operator:
            return _compares(operator, value, values)
        case _:
            # As for the scheduler: what it doesn't know selects nothing.
            return False


def _compares(operator: str, value: str | None, values: Sequence[str]) -> bool:
    """Whether a label's number is on the right side of a bound. Karpenter's requirements know `Gte` and `Lte` too."""
    found = None if value is None else parse_count(value, most=MOST)
    bound = parse_count(values[0], most=MOST) if values else None
    if found is None or bound is None:
        return False
    is_right = {
        "Gt": found > bound,
        "Gte": found >= bound,
        "Lt": found < bound,
        "Lte": found <= bound,
    }
    return is_right[operator]
