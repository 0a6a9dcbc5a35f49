"""Computes the byte ranges of a file's chunks. Pure."""

from __future__ import annotations

from modelimage.ranges import ByteRange
from modelimage.record import CHUNK_SIZE


def chunk_range(size: int, index: int) -> ByteRange:
    """The byte range of chunk `index` in a file of `size` bytes."""
    return ByteRange(index * CHUNK_SIZE, min(size, (index + 1) * CHUNK_SIZE))
