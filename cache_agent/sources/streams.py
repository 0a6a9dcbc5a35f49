"""Streams over several files or ranges, for sources that store files instead of layers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Final

from cache_agent.sources.source import ChunkRange
from modelimage.ranges import ByteRange
from modelimage.repository import BlobStream

# Buffer size for libraries that block until the buffer is full: small, so a slow sender still shows progress.
SLICE_BYTES: Final = 128 << 10

OpenPiece = Callable[[ChunkRange], AbstractContextManager[BlobStream]]


class ChainedStream:
    """Several pieces as one stream; each is opened when the previous one has ended."""

    def __init__(self, pieces: Sequence[ChunkRange], open_piece: OpenPiece) -> None:
        self._left = list(reversed(pieces))
        self._open_piece = open_piece
        self._stack = ExitStack()
        self._current: BlobStream | None = None
        self._remaining = 0

    def readinto(self, buffer: memoryview, /) -> int:
        while self._remaining == 0 and self._left:
            piece = self._left.pop()
            self._stack.close()
            self._current = self._stack.enter_context(self._open_piece(piece))
            self._remaining = len(piece.range)
        if self._current is None or self._remaining == 0:
            return 0
        count = self._current.readinto(buffer[: self._remaining])
        # A short piece ends the stream: continuing with the next would shift its bytes into this one's place.
        self._remaining = self._remaining - count if count else 0
        if count == 0:
            self._left.clear()
        return count

    def close(self) -> None:
        # Not the stack: `close` may be called from another thread, and the stack belongs to the reader's.
        if self._current is not None:
            self._current.close()

    def end(self) -> None:
        """Close the open piece."""
        self._stack.close()


def joined(pieces: Sequence[ChunkRange]) -> list[ChunkRange]:
    """The same bytes in as few pieces as possible: consecutive pieces of a file are merged into one request."""
    out: list[ChunkRange] = []
    for piece in pieces:
        if out and out[-1].is_followed_by(piece):
            whole = ByteRange(out[-1].range.start, piece.range.stop)
            out[-1] = ChunkRange(piece.file, out[-1].index, whole)
        else:
            out.append(piece)
    return out


@contextmanager
def chained(pieces: Sequence[ChunkRange], open_piece: OpenPiece) -> Iterator[BlobStream]:
    """All pieces as one stream. A single piece is opened now, several are opened on reading."""
    pieces = joined(pieces)
    if len(pieces) == 1:
        with open_piece(pieces[0]) as stream:
            yield stream
        return
    stream = ChainedStream(pieces, open_piece)
    try:
        yield stream
    finally:
        stream.end()


class DescriptorStream:
    """A range of an open file as a stream. Owns the descriptor until `end`."""

    def __init__(self, fd: int, start: int, stop: int) -> None:
        self._fd, self._position, self._stop = fd, start, stop

    def readinto(self, buffer: memoryview, /) -> int:
        wanted = min(len(buffer), self._stop - self._position)
        if wanted <= 0 or self._fd < 0:
            return 0
        count = os.preadv(self._fd, [buffer[:wanted]], self._position)
        self._position += count
        return count

    def close(self) -> None:
        """End the stream at the next read: a pending read of a local file can't be interrupted."""
        self._stop = self._position

    def end(self) -> None:
        """Close the descriptor. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
