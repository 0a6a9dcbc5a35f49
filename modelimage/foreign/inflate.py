"""Decompresses streams piece by piece, with no more output in memory than requested, whatever the ratio.

gzip (RFC 1952, several members in a row, as eStargz and pigz write them) and zstd (RFC 8878, several frames and
skippable ones). The libraries' errors are mapped to InvalidImage here.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import IO, Final, Protocol, cast

import zstandard

from modelimage.errors import InvalidImage

# Returns at most the given number of bytes; none at the end.
Read = Callable[[int], bytes]

_INPUT: Final = 256 << 10
_SMALLEST: Final = 512
_GZIP_WINDOW: Final = 31
# The limit that the zstd program accepts by default.
_ZSTD_WINDOW: Final = 128 << 20


class Inflater(Protocol):
    """A decompressed view of a compressed stream."""

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill part of the buffer; 0 only at the end. Raises InvalidImage, and any error of the source."""


class GzipInflater:
    """Decompresses gzip. Only zeros may follow the last member."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._input = memoryview(b"")
        self._piece = _INPUT
        self._member = zlib.decompressobj(_GZIP_WINDOW)
        self._inside = False

    def readinto(self, buffer: memoryview, /) -> int:
        while True:
            if not self._input:
                self._input = memoryview(self._read(_INPUT))
            if not self._inside and not self._begin():
                return 0
            given = self._input[: self._piece]
            # Never more output than the buffer: a bomb costs time in proportion to what the caller accepts.
            try:
                data = self._member.decompress(given, len(buffer))
            except zlib.error as error:
                raise InvalidImage(f"a layer is not valid gzip: {error}") from error
            # The source has ended, but the member has not.
            if not data and not given and not self._member.eof:
                raise InvalidImage("a gzip layer ends in the middle")
            ended = self._member.eof
            taken = len(given) - len(
                self._member.unused_data if ended else self._member.unconsumed_tail
            )
            self._input, self._inside = self._input[taken:], not ended
            # zlib copies what it doesn't take: of members of some bytes each, almost everything, again and again.
            self._piece = max(_SMALLEST, 2 * taken) if ended else min(2 * self._piece, _INPUT)
            if data:
                buffer[: len(data)] = data
                return len(data)

    def _begin(self) -> bool:
        """Start the next member; False if there is none."""
        while self._input and self._input[0] == 0:
            rest = bytes(self._input).lstrip(b"\0")
            self._input = memoryview(rest or self._read(_INPUT))
        if not self._input:
            return False
        self._member, self._inside = zlib.decompressobj(_GZIP_WINDOW), True
        return True


class ZstdInflater:
    """Decompresses zstd."""

    def __init__(self, read: Read) -> None:
        # A frame states its own window: without a limit, a small frame could claim gigabytes of memory.
        decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
        self._stream = decompressor.stream_reader(
            cast("IO[bytes]", _Source(read)), read_size=_INPUT, read_across_frames=True
        )

    def readinto(self, buffer: memoryview, /) -> int:
        try:
            return self._stream.readinto(buffer)
        except zstandard.ZstdError as error:
            raise InvalidImage(f"a layer is not valid zstd: {error}") from error


class _Source:
    """The source for zstandard, which only calls `read`."""

    def __init__(self, read: Read) -> None:
        self._read = read

    def read(self, size: int = -1) -> bytes:
        return self._read(size)
