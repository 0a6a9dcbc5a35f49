"""Bytes of a local file as a BlobStream."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

from modelimage import durable
from modelimage.errors import DigestMismatch, Unreachable
from modelimage.ranges import ByteRange


class FileStream:
    """A BlobStream over bytes of a file."""

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
        """Fill a part of the buffer; 0 only after the last byte promised."""
        length = min(len(buffer), self._stop - self._position)
        # The lock keeps the file open while it is read: a closed descriptor's number is soon another file's.
        with self._lock, durable.reading(self._path):
            if self._closed:
                raise Unreachable(f"{self._path} was closed while it was read")
            count = os.preadv(self._descriptor, [buffer[:length]], self._position) if length else 0
        if length and not count:
            raise DigestMismatch(f"{self._path} ends before its last byte")
        self._position += count
        return count

    def close(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                self._close()
