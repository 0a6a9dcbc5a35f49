"""A BlobStream over a local file."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

from modelimage import durable
from modelimage.errors import DigestMismatch, Unreachable
from modelimage.ranges import ByteRange


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
