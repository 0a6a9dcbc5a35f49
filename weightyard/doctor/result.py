"""A check's finding: level, what was seen, and advice."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from modelimage.errors import Fault, WeightyardError

_ORDER: Final = ("ok", "warn", "fail")


class Level(StrEnum):
    """`warn`: works, but not as well or not for everyone. `fail`: doesn't work."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check. `advice` is an imperative sentence, empty for OK. `where` is a node's name."""

    check: str
    level: Level
    seen: str
    advice: str = ""
    where: str = ""


class PreflightFailed(WeightyardError):
    """A check of `weightyard doctor` found something that prevents Weightyard from working."""

    fault = Fault.NODE


def ok(check: str, seen: str) -> Finding:
    """A finding without a problem."""
    return Finding(check, Level.OK, seen)


def warn(check: str, seen: str, advice: str) -> Finding:
    """A finding for something that works with restrictions."""
    return Finding(check, Level.WARN, seen, advice)


def fail(check: str, seen: str, advice: str) -> Finding:
    """A finding for something that doesn't work."""
    return Finding(check, Level.FAIL, seen, advice)


def worst(findings: Iterable[Finding]) -> Level:
    """The worst level of the findings; OK without any."""
    return max((each.level for each in findings), key=_ORDER.index, default=Level.OK)
