"""Atomic, durable file writes: a file is complete and on disk, or absent.

Temporary name, write, fsync, rename, fsync of the directory, as in containerd's content store and restic's local
backend. System error numbers are mapped to our classes here, once. Independent of images.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import secrets
import shutil
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

# Write-back is started each time this much has been written.
_WRITEBACK_BYTES: Final = 16 << 20
_SYNC_FILE_RANGE_WRITE: Final = 2
# Linux only; elsewhere the data reaches the disk at the fsync.
_sync_file_range: Any = getattr(ctypes.CDLL(None), "sync_file_range", None)


def start_writeback(descriptor: int, offset: int = 0, size: int = 0) -> None:
    """Start writing a range back to disk (size 0: to the end), so that the later fsync has little left to do.

    Doesn't wait and guarantees nothing: only the fsync at the end makes data durable and reports errors.
    """
    if _sync_file_range is not None:
        start, length = ctypes.c_int64(offset), ctypes.c_int64(size)
        _sync_file_range(descriptor, start, length, _SYNC_FILE_RANGE_WRITE)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Map an OSError raised while reading `path`: NotFound, AccessDenied, else Unreachable (failing disk or mount)."""
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
    """Map an OSError raised while writing `path`: NoSpace or NotWritable."""
    try:
        yield
    except OSError as error:
        raise write_error(path, error) from error


def write_error(path: Path, error: OSError) -> WeightyardError:
    """Our error class for an OSError raised while writing `path`."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in _FULL:
        return NoSpace(
            f"no space to write {path}: {reason}", hint="Free space there or choose another disk."
        )
    return NotWritable(
        f"can't write {path}: {reason}", hint="Choose a directory that you may write to."
    )


def nearest_existing(path: Path) -> Path:
    """The path, or its nearest parent that exists."""
    path = path.absolute()
    return next((each for each in (path, *path.parents) if each.exists()), path)


def check_space(directory: Path, needed: int) -> None:
    """Raise NoSpace if `needed` bytes don't fit in the filesystem of a directory, which may not exist yet."""
    there = nearest_existing(directory)
    with reading(there):
        free = shutil.disk_usage(there).free
    if needed > free:
        raise NoSpace(
            f"{directory} needs {needed} bytes and has {free} free",
            hint="Free space there, or choose a directory on another disk.",
        )


def fsync_path(path: Path) -> None:
    """Make a file's bytes, or a directory's entries, durable."""
    # Read-only: a directory can't be opened otherwise, and fsync(2) doesn't ask for more.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directories(path: Path) -> None:
    """Create a directory and its parents, and make each entry durable."""
    if path.is_dir():
        return
    make_directories(path.parent)
    path.mkdir(exist_ok=True)
    # The new entry is synced in its parent; a crash would otherwise lose the directory with everything in it.
    fsync_path(path.parent)


class PendingFile:
    """A file being written under a temporary name in `directory`; removed unless published.

    Holds a lock on the file, so that `sweep` can distinguish files in use from those of dead writers.
    Not safe for concurrent use by several threads.
    """

    def __init__(self, directory: Path) -> None:
        self.size = 0
        self._given_to_disk = 0
        self._path, self._descriptor = _create_locked(directory)

    def write(self, data: memoryview | bytes | bytearray) -> None:
        """Append all bytes. Raises OSError; map it with `writing`."""
        rest = memoryview(data).cast("B")
        # A write may accept only part of the data.
        while rest:
            count = os.write(self._descriptor, rest)
            self.size += count
            rest = rest[count:]
        if self.size - self._given_to_disk >= _WRITEBACK_BYTES:
            start_writeback(self._descriptor, self._given_to_disk, self.size - self._given_to_disk)
            self._given_to_disk = self.size

    def publish(self, path: Path) -> None:
        """Make the file durable under its final name, replacing an existing file."""
        # The order matters: content before name, so a crash can't leave the final name on incomplete bytes, and the
        # directory last, so the name survives a crash once this returns.
        os.fsync(self._descriptor)
        self._path.rename(path)
        fsync_path(path.parent)
        os.close(self._descriptor)
        self._descriptor = -1

    def discard(self) -> None:
        """Remove the file, unless it was published."""
        if self._descriptor < 0:
            return
        # The name first: a process killed in between leaves no file that looks half-written.
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = -1


@contextlib.contextmanager
def pending_file(directory: Path) -> Iterator[PendingFile]:
    """A PendingFile that is removed on exit unless published. Raises OSError."""
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
    """Remove temporary files left in `directory` by dead writers. Raises OSError."""
    for path in directory.glob(f"{_PREFIX}*"):
        try:
            descriptor = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            continue
        try:
            # A lock that can be taken proves that the writer is dead; age proves nothing about a slow one.
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
        # Blocks at most briefly: only a sweep can hold this lock.
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        # A sweep between open and flock may have removed the file as a dead writer's: check the link count.
        if os.fstat(descriptor).st_nlink:
            return path, descriptor
        os.close(descriptor)
