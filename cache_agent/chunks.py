"""Where a file's chunks lie. Pure."""

from __future__ import annotations

from modelimage.ranges import ByteRange
from modelimage.record import CHUNK_SIZE


def chunk_range(size: int, index: int) -> ByteRange:
    """Which bytes of a file of `size` bytes its chunk `index` is."""
    return ByteRange(index * CHUNK_SIZE, min(size, (index + 1) * CHUNK_SIZE))
