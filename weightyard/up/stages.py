"""Parses the log of an inference server that died: the cause, and its last words. Lines in, text out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

BOOTING: Final = "importing vLLM"
_PREFIX = re.compile(r"^\(\S+( pid=\d+)?\)\s+")
_LOGGED = re.compile(r"^(ERROR|WARNING|INFO|DEBUG)\s+\d\d-\d\d \d\d:\d\d:\d\d (\[[^\]]+\])?\s*")
_RAISED = re.compile(r"^(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Exit|Interrupt): .+")
# Raised only as a consequence of an earlier exception.
_ECHOES: Final = (
    "Engine core initialization failed",
    "EngineCore encountered an issue",
    "cancelled",
)


def plain(line: str) -> str:
    """A log line without process name, level and time."""
    return _LOGGED.sub("", _PREFIX.sub("", line)).rstrip()


def cause(lines: Sequence[str]) -> str | None:
    """The exception that ended a server: the first one that isn't a consequence of another."""
    raised = [text for line in lines if _RAISED.match(text := plain(line))]
    first = [text for text in raised if not any(echo in text for echo in _ECHOES)]
    return next(iter(first or raised), None)


def last_words(lines: Sequence[str], count: int) -> list[str]:
    """The last lines with content, without their prefixes."""
    said = [text for line in lines if (text := plain(line)).strip(" ^~")]
    return said[-count:]
