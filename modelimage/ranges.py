"""Byte ranges: the values, and their HTTP grammar (RFC 9110, section 14). Text in, values out; no sockets."""

from __future__ import annotations

import re
from dataclasses import dataclass

from modelimage.errors import InvalidInput

_SPEC = re.compile(r"([0-9]{0,19})-([0-9]{0,19})")
_CONTENT = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)")


@dataclass(frozen=True, slots=True, order=True)
class ByteRange:
    """Bytes `start` up to but not including `stop`; never empty, never negative."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise InvalidInput(f"not a byte range: {self.start}-{self.stop}")

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def header(self) -> str:
        """The value of a Range request header."""
        return f"bytes={self.start}-{self.stop - 1}"


def parse_range(header: str, size: int) -> ByteRange | None:
    """The single range that a Range header asks of a representation of `size` bytes.

    None means serve the whole: the unit is not bytes, the header is malformed, or it asks for several ranges.
    Raises InvalidInput when the range can't be satisfied (a 416).
    """
    unit, equals, spec = header.strip().partition("=")
    match = _SPEC.fullmatch(spec.strip())
    if unit.strip().lower() != "bytes" or not equals or match is None:
        return None
    first, last = match.groups()
    if not first and not last:
        return None
    if not first:
        start, stop = max(0, size - int(last)), size
    else:
        start, stop = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < start:
            return None
    if start >= stop:
        raise InvalidInput(f"range {spec} is outside of {size} bytes")
    return ByteRange(start, stop)


def parse_content_range(header: str) -> tuple[ByteRange, int | None] | None:
    """The range, and the whole size if told, of a Content-Range header; None when malformed."""
    match = _CONTENT.fullmatch(header.strip())
    if match is None or int(match[2]) < int(match[1]):
        return None
    total = None if match[3] == "*" else int(match[3])
    if total is not None and total <= int(match[2]):
        return None
    return ByteRange(int(match[1]), int(match[2]) + 1), total
