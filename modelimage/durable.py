"""Writing files so that they are either there, whole and on disk, or not there at all.

Temporary name, write, fsync, rename, fsync of the directory: what containerd's content store and restic's local
backend do. The system's error numbers become our classes here, once. It knows nothing of images.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from modelimage.errors import (
    AccessDenied,
    NoSpace,
    NotFound,
    NotWritable,
    Unreachable,
    WeightyardError,
)

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR})
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM})

# How much is written before the disk is asked to begin with it.
_WRITEBACK_BYTES: Final = 16 << 20
_SYNC_FILE_RANGE_WRITE: Final = 2
# Linux alone has it; elsewhere the disk waits for the fsync.
_sync_file_range: Any = getattr(ctypes.CDLL(None), "sync_file_range", None)


def start_writeback(descriptor: int, offset: int = 0, size: int = 0) -> None:
    """Have the disk begin with what was written to a range (size 0: to the end), so that an fsync finds little to do.

    Waits for nothing and promises nothing: durable is what is synced in the end, which tells errors.
    """
    if _sync_file_range is not None:
        start, length = ctypes.c_int64(offset), ctypes.c_int64(size)
        _sync_file_range(descriptor, start, length, _SYNC_FILE_RANGE_WRITE)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Map an OSError while `path` is read: NotFound, AccessDenied, else Unreachable (a failing disk or mount)."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        if error.errno in _ABSENT:
            raise NotFound(f"{path}: {reason}", hint="Check the path.") from error
        if error.errno in _FORBIDDEN:
            raise AccessDenied(
                f"can't read {path}: {reason}", hint="Check the permissions of the file."
            ) from error
        raise Unreachable(
            f"can't read {path}: {reason}", hint="Check the disk or the mount."
        ) from error


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Map an OSError while `path` is written: NoSpace or NotWritable."""
    try:
        yield
    except OSError as error:
        raise write_error(path, error) from error


def write_error(path: Path, error: OSError) -> WeightyardError:
    """Our class for an error that writing `path` met."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in _FULL:
        return NoSpace(
            f"no space to write {path}: {reason}", hint="Free space there or choose another disk."
        )
    return NotWritable(
        f"can't write {path}: {reason}", hint="Choose a directory that you may write to."
    )


def fsync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directories(path: Path) -> None:
    """Create a directory and its parents, each name durable."""
    if path.is_dir():
        return
    make_directories(path.parent)
    path.mkdir(exist_ok=True)
    fsync_directory(path.parent)


class PendingFile:
    """A file being written under a temporary name in `directory`; dropped unless published.

    It holds a lock on itself, so that `sweep` can tell a dead writer's leavings from a file in use.
    Not for use from several threads at once.
    """

    def __init__(self, directory: Path) -> None:
        self.size = 0
        self._given_to_disk = 0
        self._path, self._descriptor = _create_locked(directory)

    def write(self, data: memoryview | bytes | bytearray) -> None:
        """Append all the bytes. Raises OSError; map it with `writing`."""
        rest = memoryview(data).cast("B")
        while rest:
            count = os.write(self._descriptor, rest)
            self.size += count
            rest = rest[count:]
        if self.size - self._given_to_disk >= _WRITEBACK_BYTES:
            start_writeback(self._descriptor, self._given_to_disk, self.size - self._given_to_disk)
            self._given_to_disk = self.size

    def publish(self, path: Path) -> None:
        """Make it durable under its final name, which replaces what is there."""
        os.fsync(self._descriptor)
        self._path.rename(path)
        fsync_directory(path.parent)
        os.close(self._descriptor)
        self._descriptor = -1

    def discard(self) -> None:
        """Remove it, unless it was published."""
        if self._descriptor < 0:
            return
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = -1


@contextlib.contextmanager
def pending_file(directory: Path) -> Iterator[PendingFile]:
    """A PendingFile that leaves nothing behind unless it was published. Raises OSError."""
    pending = PendingFile(directory)
    try:
        yield pending
    finally:
        pending.discard()


def write_file(path: Path, data: bytes) -> None:
    """Replace a small file atomically and durably. Raises OSError."""
    with pending_file(path.parent) as pending:
        pending.write(data)
        pending.publish(path)


def sweep(directory: Path) -> None:
    """Remove the temporary files that dead writers left in `directory`. Raises OSError."""
    for path in directory.glob(f"{_PREFIX}*"):
        try:
            descriptor = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
        except BlockingIOError:
            continue
        finally:
            os.close(descriptor)


_PREFIX = ".pending-"


def _create_locked(directory: Path) -> tuple[Path, int]:
    while True:
        path = directory / f"{_PREFIX}{secrets.token_hex(8)}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        # A sweep may have come between the two calls and taken it for a dead writer's.
        if os.fstat(descriptor).st_nlink:
            return path, descriptor
        os.close(descriptor)
