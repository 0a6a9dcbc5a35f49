"""Reads ranges of local files: as a BlobStream, or piece by piece."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from modelimage import durable
from modelimage.errors import DigestMismatch, InvalidCheckpoint, Unreachable
from modelimage.ranges import ByteRange

_BUFFER_BYTES: Final = 4 << 20


def file_pieces(path: Path, start: int, size: int) -> Iterator[memoryview]:
    """The `size` bytes of a file from `start`; a piece is valid until the next one.

    Raises NotFound, AccessDenied, and InvalidCheckpoint if the file ends before.
    """
    buffer = memoryview(bytearray(min(size, _BUFFER_BYTES)))
    with durable.reading(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        stop = start + size
        while start < stop:
            with durable.reading(path):
                count = os.preadv(descriptor, [buffer[: stop - start]], start)
            # Only the length is checked here: changed bytes fail the destination's digest check.
            if not count:
                raise InvalidCheckpoint(
                    f"{path} became shorter while it was read",
                    hint="Wait until the checkpoint is complete, then build again.",
                )
            yield buffer[:count]
            start += count
    finally:
        os.close(descriptor)


class FileStream:
    """A BlobStream over a byte range of a file."""

    def __init__(
        self, descriptor: int, path: Path, wanted: ByteRange | None, close: Callable[[], None]
    ) -> None:
        self._descriptor = descriptor
        self._path = path
        self._position = wanted.start if wanted else 0
        self._stop = wanted.stop if wanted else os.fstat(descriptor).st_size
        self._close = close
        self._closed = False
        self._lock = threading.Lock()

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill part of the buffer; returns 0 only after the last promised byte."""
        length = min(len(buffer), self._stop - self._position)
        # The lock keeps the descriptor open during the read: its number would soon be reused for another file.
        with self._lock, durable.reading(self._path):
            if self._closed:
                raise Unreachable(f"{self._path} was closed while it was read")
            count = os.preadv(self._descriptor, [buffer[:length]], self._position) if length else 0
        if length and not count:
            raise DigestMismatch(f"{self._path} ends before its last byte")
        self._position += count
        return count

    def close(self) -> None:
        # Under the lock: another thread's `readinto` may be using the descriptor.
        with self._lock:
            if not self._closed:
                self._closed = True
                self._close()
