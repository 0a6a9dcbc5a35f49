"""Streams made of others, for places that hold files rather than layers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Final

from cache_agent.sources.source import ChunkRange
from modelimage.ranges import ByteRange
from modelimage.repository import BlobStream

# What to ask of a library that waits until a buffer is full: a slow sender must be seen to make progress.
SLICE_BYTES: Final = 128 << 10

OpenPiece = Callable[[ChunkRange], AbstractContextManager[BlobStream]]


class ChainedStream:
    """Several pieces as one stream; each is opened when the one before has ended."""

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
        # A piece that ends early ends the stream: the reader sees that bytes are missing.
        self._remaining = self._remaining - count if count else 0
        if count == 0:
            self._left.clear()
        return count

    def close(self) -> None:
        if self._current is not None:
            self._current.close()

    def end(self) -> None:
        """Free what is open."""
        self._stack.close()


def joined(pieces: Sequence[ChunkRange]) -> list[ChunkRange]:
    """The same bytes in as few pieces as can be: what follows in the same file is asked for at once."""
    out: list[ChunkRange] = []
    for piece in pieces:
        if out and out[-1].goes_on_with(piece):
            whole = ByteRange(out[-1].range.start, piece.range.stop)
            out[-1] = ChunkRange(piece.file, out[-1].index, whole)
        else:
            out.append(piece)
    return out


@contextmanager
def chained(pieces: Sequence[ChunkRange], open_piece: OpenPiece) -> Iterator[BlobStream]:
    """All pieces back to back. The first is opened now, so that what is missing is said at once."""
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


class FileStream:
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
        """A read of a local file can't be interrupted; the next one ends the stream."""
        self._stop = self._position

    def end(self) -> None:
        """Close the descriptor; again does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
