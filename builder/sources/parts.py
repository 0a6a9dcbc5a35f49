"""A file that is fetched in parts, in any order, and resumed after a crash.

The bytes are in `NAME.part`; one byte per part in `NAME.done` records whether the part is on disk. The file gets its
name when all parts are. Safe for several threads that write different parts, and locked against other processes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from modelimage.durable import fsync_path, make_directories, reading, writing
from modelimage.errors import Busy
from modelimage.ranges import ByteRange


class PartFile:
    """One partly fetched file. Created by `PartFile.open`."""

    def __init__(self, path: Path, size: int, part_size: int) -> None:
        self._path = path
        self._size = size
        self._part_size = part_size
        self._data_path = path.with_name(f"{path.name}.part")
        self._done_path = path.with_name(f"{path.name}.done")
        # Marks are set by the readers of all parts, and taken back at once when the whole file is wrong.
        self._lock = threading.Lock()
        self._data = self._done = -1
        self._finished = bytearray()

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: Path, size: int, part_size: int) -> Iterator[PartFile]:
        """Start or resume a file. Raises NoSpace, NotWritable, and Busy while another process fetches it."""
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
        """Bytes of the complete parts."""
        return sum(len(self.span(n)) for n, done in enumerate(self._finished) if done)

    def missing(self) -> list[int]:
        """The numbers of the missing parts."""
        return [number for number, done in enumerate(self._finished) if not done]

    def span(self, number: int) -> ByteRange:
        """The byte range of a part."""
        start = number * self._part_size
        return ByteRange(start, min(self._size, start + self._part_size))

    def write(self, data: bytes, offset: int) -> None:
        """Write bytes at an offset of the file."""
        view = memoryview(data)
        with writing(self._path):
            while view:
                count = os.pwrite(self._data, view, offset)
                view, offset = view[count:], offset + count

    def mark(self, number: int) -> None:
        """Record a part as complete, after its bytes are on disk."""
        with writing(self._path):
            # The data is synced before the mark: a crash may lose a mark, but never leaves one without its bytes.
            os.fdatasync(self._data)
            with self._lock:
                self._finished[number] = 1
                os.pwrite(self._done, b"\1", number)

    def read(self, size: int) -> Iterator[bytes]:
        """The bytes in order, `size` at a time. All parts must be complete. Raises Unreachable for a failing disk."""
        position = 0
        with reading(self._data_path):
            while data := os.pread(self._data, size, position):
                position += len(data)
                yield data

    def forget(self) -> None:
        """Take back the marks of all parts, so that the next fetch starts over."""
        with writing(self._path), self._lock:
            # Not synced: if a crash brings the marks back, the same bytes fail their check again.
            self._finished = bytearray(len(self._finished))
            os.pwrite(self._done, self._finished, 0)

    def publish(self) -> None:
        """Rename the file to its final name. All parts must be complete."""
        with writing(self._path):
            # Data before the name, and the marks removed only after it, so that a crash in between loses neither.
            os.fsync(self._data)
            self._data_path.rename(self._path)
            self._done_path.unlink()
            fsync_path(self._path.parent)

    def _open(self) -> None:
        make_directories(self._path.parent)
        self._done = os.open(self._done_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        # The lock is on the marks' file, because the data file is renamed when it is complete.
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
        # Only a byte of 1 marks a part; without the data file no mark counts, as after a crash in `publish`.
        self._finished = bytearray(byte == 1 for byte in held.ljust(count, b"\0"))
        os.ftruncate(self._done, 0)
        os.pwrite(self._done, self._finished, 0)
