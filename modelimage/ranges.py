"""Byte ranges and their HTTP grammar (RFC 9110, section 14). Parses text to values; no sockets."""

from __future__ import annotations

import re
from dataclasses import dataclass

from modelimage.errors import InvalidInput

_SPEC = re.compile(r"([0-9]{0,19})-([0-9]{0,19})")
_CONTENT = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)")


@dataclass(frozen=True, slots=True, order=True)
class ByteRange:
    """Bytes from `start` up to but excluding `stop`; never empty, never negative."""

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
    """Parse a Range header for a representation of `size` bytes that requests a single range.

    None means that the whole is to be served: the unit is not bytes, the header is malformed, or has several ranges.
    Raises InvalidInput if the range can't be satisfied (status 416).
    """
    unit, equals, spec = header.strip().partition("=")
    match = _SPEC.fullmatch(spec.strip())
    # A server ignores ranges that it doesn't understand and sends the whole representation.
    if unit.strip().lower() != "bytes" or not equals or match is None:
        return None
    first, last = match.groups()
    if not first and not last:
        return None
    # "-N" is a suffix: the last N bytes, or all of a shorter representation.
    if not first:
        start, stop = max(0, size - int(last)), size
    else:
        start, stop = int(first), min(int(last) + 1, size) if last else size
        # Invalid by RFC 9110, section 14.1.1: ignored, not refused.
        if last and int(last) < start:
            return None
    if start >= stop:
        raise InvalidInput(f"range {spec} is outside of {size} bytes")
    return ByteRange(start, stop)


def parse_content_range(header: str) -> tuple[ByteRange, int | None] | None:
    """The range, and the complete size if stated, of a Content-Range header; None if malformed."""
    match = _CONTENT.fullmatch(header.strip())
    if match is None or int(match[2]) < int(match[1]):
        return None
    total = None if match[3] == "*" else int(match[3])
    if total is not None and total <= int(match[2]):
        return None
    return ByteRange(int(match[1]), int(match[2]) + 1), total
