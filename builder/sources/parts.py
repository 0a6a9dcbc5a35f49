"""A file that arrives in parts, in any order, and goes on where it was after a crash.

The bytes are in `NAME.part`; a byte for each part in `NAME.done` says whether it is there and on disk. The file takes
its name when all are. Safe for several threads that write different parts, and locked against other processes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from modelimage.durable import fsync_directory, make_directories, writing
from modelimage.errors import Busy
from modelimage.ranges import ByteRange


class PartFile:
    """One file on its way. Made by `PartFile.open`."""

    def __init__(self, path: Path, size: int, part_size: int) -> None:
        self._path = path
        self._size = size
        self._part_size = part_size
        self._data_path = path.with_name(f"{path.name}.part")
        self._done_path = path.with_name(f"{path.name}.done")
        self._lock = threading.Lock()
        self._data = self._done = -1
        self._finished = bytearray()

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: Path, size: int, part_size: int) -> Iterator[PartFile]:
        """Begin or continue. Raises NoSpace, NotWritable, and Busy while another process is at it."""
        parts = cls(path, size, part_size)
        try:
            with writing(path):
                parts._open()
            yield parts
        finally:
            for descriptor in (parts._data, parts._done):
                if descriptor >= 0:
                    os.close(descriptor)

    @property
    def done_bytes(self) -> int:
        """Bytes of the parts that are there."""
        return sum(len(self.span(n)) for n, done in enumerate(self._finished) if done)

    def missing(self) -> list[int]:
        """The numbers of the parts that aren't there."""
        return [number for number, done in enumerate(self._finished) if not done]

    def span(self, number: int) -> ByteRange:
        """Which bytes of the file a part is."""
        start = number * self._part_size
        return ByteRange(start, min(self._size, start + self._part_size))

    def write(self, data: bytes, offset: int) -> None:
        """Put bytes in their place."""
        view = memoryview(data)
        with writing(self._path):
            while view:
                count = os.pwrite(self._data, view, offset)
                view, offset = view[count:], offset + count

    def mark(self, number: int) -> None:
        """Note that a part is complete, once it is on disk."""
        with writing(self._path):
            os.fdatasync(self._data)
            with self._lock:
                self._finished[number] = 1
                os.pwrite(self._done, b"\1", number)

    def publish(self) -> None:
        """Give the file its name; every part is there."""
        with writing(self._path):
            os.fsync(self._data)
            self._data_path.rename(self._path)
            self._done_path.unlink()
            fsync_directory(self._path.parent)

    def _open(self) -> None:
        make_directories(self._path.parent)
        self._done = os.open(self._done_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._done, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Busy(
                f"another process is fetching {self._path.name}", hint="Wait until it is done."
            ) from error
        known = os.path.exists(self._data_path)  # noqa: PTH110 (a broken link counts as absent)
        self._data = os.open(self._data_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        os.ftruncate(self._data, self._size)
        count = -(-self._size // self._part_size)
        held = os.pread(self._done, count, 0) if known else b""
        # Anything but a one counts as not there.
        self._finished = bytearray(byte == 1 for byte in held.ljust(count, b"\0"))
        os.ftruncate(self._done, 0)
        os.pwrite(self._done, self._finished, 0)
