"""Formats and parses sizes and durations: bytes in decimal units, durations in the two largest units.

Makes text of others safe to show.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final

from modelimage.errors import InvalidInput

_SIZE: Final = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?)\s*([kKMGTP]?)(i?)B?")
# Controls of terminals, marks that change the direction of text, and halves of characters, which can't be encoded.
_UNSEEN: Final = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udfff]"
)
_UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB")


def printable(text: str) -> str:
    """The text with what a terminal would obey instead of show as JSON's escapes; tabs and line ends stay.

    Law: `json.loads(printable(json.dumps(x, ensure_ascii=False))) == x`.
    """
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def one_line(text: str) -> str:
    """The printable text without line ends: part of a line or table, in which others' words begin no new one."""
    return printable(" ".join(text.splitlines()))


def middle_cut(text: str, size: int) -> str:
    """The text in at most `size` characters: both ends matter, of an image as of a digest."""
    if len(text) <= size:
        return text
    tail = (size - 1) // 2
    return f"{text[: size - 1 - tail]}…{text[len(text) - tail :]}"


def format_bytes(count: float) -> str:
    """`1500000` -> `1.5 MB`. Decimal units, as used for disks and networks."""
    size = float(count)
    for unit in _UNITS:
        # The limits are where rounding would print 1000, or 100.0, in this unit.
        if abs(size) < 999.5 or unit == _UNITS[-1]:
            return (
                f"{size:.0f} {unit}" if unit == "B" or abs(size) >= 99.95 else f"{size:.1f} {unit}"
            )
        size /= 1000
    raise AssertionError("the last unit takes any size")


def parse_bytes(text: str) -> int:
    """`10GB` -> 10000000000, `9.5 GiB`, `4096`. Raises InvalidInput."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise InvalidInput(f"not a size: {text[:40]!r}", hint="Write for example 10GB or 9.5GiB.")
    number, prefix, binary = match[1], match[2].upper(), bool(match[3])
    factor = (1024 if binary else 1000) ** (" KMGTP".index(prefix) if prefix else 0)
    # Decimal, since a float would be off by bytes in large sizes.
    return int(Decimal(number) * factor)


def format_duration(seconds: float) -> str:
    """`0.42` -> `0.4 s`, `75` -> `1 min 15 s`, `7300` -> `2 h 1 min`."""
    # From here on one decimal would print 60.0 s.
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def plural(count: int, thing: str) -> str:
    """`1 file`, `2 files`; a thing whose plural ends in s."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"
