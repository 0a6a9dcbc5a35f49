"""The only operations by which a store changes its filesystem. Each reports to an observer first and maps OSError.

Nothing else in the store writes, links, renames or removes, so a test that counts, refuses or crashes at every
operation covers every step. Independent of models, digests and the ledger.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cache_agent.errors import DiskFailed, LinkRefused, Vanished, exhausted, is_exhaustion
from modelimage.durable import start_writeback
from modelimage.errors import NoSpace, NotWritable, WeightyardError

# 1 MiB costs twice the system time of two 512 KiB writes: the kernel then looks for larger contiguous pages.
WRITE_BYTES: Final = 512 << 10
# Up to this size a file's blocks are allocated by its one write: allocating them before takes longer than writing it.
SMALL_BYTES: Final = 64 << 10
READ_ONLY_FILE: Final = 0o444
# EFBIG: larger than the filesystem or the process may write a file; the disk works.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ELOOP})
_NO_DIRECTORY = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
_NO_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK})
_NO_FALLOCATE = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})

_libc = ctypes.CDLL(None, use_errno=True)
_off_t = ctypes.c_int64
_libc.syncfs.argtypes = [ctypes.c_int]
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, _off_t, _off_t]


@dataclass(frozen=True, slots=True)
class Operation:
    """One change about to be made. `kind` is the method's name, `target` the second path of rename and link."""

    kind: str
    path: Path
    target: Path | None = None


Observer = Callable[[Operation], None]


def ignore(operation: Operation) -> None:
    """The no-op observer of a production store."""


class Disk:
    """Changes one filesystem. `observe` runs before each change; an OSError that it raises fails that change.

    Every method raises NoSpace, NotWritable, LinkRefused, DiskFailed or Exhausted, never OSError.
    """

    def __init__(self, observe: Observer = ignore) -> None:
        self._observe = observe

    def open_partial(self, path: Path, size: int) -> int:
        """Open a file of `size` bytes for reading and writing; a large one's blocks are allocated now, not on write."""
        with self._change("open_partial", path):
            # O_NOFOLLOW: a link in `partial/` must not redirect writes.
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            # Allocated now, so that a full disk fails a pull at its start and not after gigabytes.
            with self._change("allocate", path):
                _allocate(fd, size)
        except WeightyardError:
            os.close(fd)
            raise
        return fd

    def pwrite(self, fd: int, path: Path, data: memoryview, offset: int) -> None:
        """Write all of `data` at `offset`."""
        with self._change("pwrite", path):
            while data:
                written = os.pwrite(fd, data[:WRITE_BYTES], offset)
                data, offset = data[written:], offset + written

    def start_writeback(self, fd: int, offset: int, size: int) -> None:
        """Start asynchronous writeback of pages, so that the final fsync has little left to do."""
        start_writeback(fd, offset, size)

    def fsync(self, fd: int, path: Path) -> None:
        with self._change("fsync", path):
            os.fsync(fd)

    def seal(self, fd: int, path: Path, *, durable: bool = True) -> None:
        """Make a file read-only for everyone, then make content and mode durable, unless the caller does."""
        # Mode before fsync: one flush makes both durable.
        with self._change("seal", path):
            os.fchmod(fd, READ_ONLY_FILE)
        if durable:
            self.fsync(fd, path)

    def sync_filesystem(self, path: Path) -> None:
        """Make all files and names of a directory's filesystem durable: one flush for hundreds of changes."""
        with self._change("sync_filesystem", path):
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                # Not os.sync, which would flush the other filesystems of the node as well, also one that hangs.
                if _libc.syncfs(fd) != 0:
                    code = ctypes.get_errno()
                    raise OSError(code, os.strerror(code))
            finally:
                os.close(fd)

    def chmod(self, path: Path, mode: int) -> None:
        with self._change("chmod", path):
            path.chmod(mode)

    def sync_directory(self, path: Path) -> None:
        """Make the names in a directory durable."""
        with self._change("sync_directory", path):
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def mkdir(self, path: Path) -> bool:
        """Create a directory durably; False when it existed. Raises NotWritable for a link or a file of that name."""
        made = self._mkdir(path)
        if made:
            # A directory's name is durable only once its parent is synced.
            self.sync_directory(path.parent)
        return made

    def make_directories(self, paths: Iterable[Path]) -> None:
        """Create directories durably, with one sync of each parent."""
        made = [path for path in sorted(paths) if self._mkdir(path)]
        for parent in {path.parent for path in made}:
            self.sync_directory(parent)

    def _mkdir(self, path: Path) -> bool:
        if is_real_directory(path):
            return False
        with self._change("mkdir", path):
            # Not `exist_ok`, which accepts a link to a directory.
            with suppress(FileExistsError):
                path.mkdir(mode=0o755)
            if not is_real_directory(path):
                raise NotADirectoryError(errno.ENOTDIR, "a link or file is there", str(path))
        return True

    def make_staging(self, path: Path) -> None:
        """Create a directory without making it durable."""
        with self._change("mkdir", path):
            path.mkdir(mode=0o755)

    def rename(self, path: Path, target: Path) -> None:
        with self._change("rename", path, target):
            path.rename(target)

    def link(self, path: Path, target: Path) -> None:
        """Hard-link a file. Raises LinkRefused where the filesystem doesn't support it."""
        # Not through `_change`: here EPERM and EXDEV mean that hard links are unsupported, not that writing is denied.
        try:
            self._observe(Operation("link", path, target))
            target.hardlink_to(path)
        except OSError as error:
            if error.errno in _NO_LINK:
                raise _link_refused(target, error) from error
            raise _mapped(target, error) from error

    def write_small(self, path: Path, data: bytes) -> None:
        """Replace a small file atomically: after a crash the old or the new content is there. Not yet durable."""
        # Two threads may write the same file concurrently: each needs its own temporary name.
        temporary = path.with_name(f".{path.name}.{threading.get_ident()}.tmp")
        with self._change("write_small", path):
            fd = _open_new(temporary, 0o644)
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(fd, rest) :]
            finally:
                os.close(fd)
            temporary.rename(path)

    def overwrite_small(self, path: Path, data: bytes) -> None:
        """Overwrite a small file in place: not durable, and truncated by a crash, so only for checksummed content.

        Avoids the flush that ext4 does when a rename replaces a file.
        """
        with self._change("overwrite_small", path):
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                os.pwrite(fd, data, 0)
            finally:
                os.close(fd)

    def write_durable(self, path: Path, data: bytes, mode: int = READ_ONLY_FILE) -> None:
        """Replace a small file atomically and durably: temporary name, write, fsync, rename, fsync of the directory."""
        temporary = path.with_name(f".{path.name}.tmp")
        with self._change("write_temporary", temporary):
            fd = _open_new(temporary, 0o600)
        try:
            self.pwrite(fd, temporary, memoryview(data), 0)
            with self._change("seal", temporary):
                os.fchmod(fd, mode)
            # Before the rename: else a power loss can leave the new name with no content.
            self.fsync(fd, temporary)
        finally:
            os.close(fd)
        self.rename(temporary, path)
        self.sync_directory(path.parent)

    def unlink(self, path: Path) -> None:
        """Remove a file; a missing one isn't an error."""
        with self._change("unlink", path), suppress(FileNotFoundError):
            path.unlink()

    def remove_tree(self, path: Path) -> None:
        """Remove a directory tree without following links."""
        if not is_real_directory(path):
            self.unlink(path)
            return
        for entry in listed(path):
            self.remove_tree(entry)
        with self._change("rmdir", path), suppress(FileNotFoundError):
            path.rmdir()

    @contextmanager
    def _change(self, kind: str, path: Path, target: Path | None = None) -> Iterator[None]:
        try:
            # Inside the try: an error injected by a test is mapped like the kernel's.
            self._observe(Operation(kind, path, target))
            yield
        except OSError as error:
            raise _mapped(target or path, error) from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Map OSErrors from reading a store's file to NoSpace, NotWritable, DiskFailed or Exhausted."""
    try:
        yield
    except OSError as error:
        raise _mapped(path, error) from error


def status_of(path: Path) -> os.stat_result | None:
    """The status of a name itself, links not followed; None when nothing has it. Raises DiskFailed."""
    # One call: a name that is looked at twice may be gone the second time.
    with reading(path):
        try:
            return path.lstat()
        except OSError as error:
            if error.errno in _NO_DIRECTORY:
                return None
            raise


def plain_size(path: Path) -> int | None:
    """The size of a regular file in bytes; None when it is missing or anything else. Raises DiskFailed."""
    status = status_of(path)
    return status.st_size if status is not None and stat.S_ISREG(status.st_mode) else None


def total_and_free(directory: Path) -> tuple[int, int]:
    """The size of a directory's filesystem, and what others than root may still write there, in bytes."""
    with reading(directory):
        disk = os.statvfs(directory)
    return disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize


def is_plain_file(path: Path) -> bool:
    """Whether a path itself is a regular file; symbolic links are not followed. Raises DiskFailed."""
    return plain_size(path) is not None


def open_plain(path: Path, flags: int = 0) -> int:
    """A descriptor of a regular file, for reading. Raises OSError; FileNotFoundError also for what is none."""
    fd = _open_if_plain(path, flags)
    if fd is None:
        raise FileNotFoundError(errno.ENOENT, "no regular file", str(path))
    return fd


def read_plain(path: Path) -> bytes:
    """The bytes of a regular file. Those of what is none are none, like a damaged file's. Raises OSError."""
    fd = _open_if_plain(path, 0)
    if fd is None:
        return b""
    with os.fdopen(fd, "rb") as file:
        return file.read()


def _open_if_plain(path: Path, flags: int) -> int | None:
    # O_NONBLOCK: else the open of a pipe waits for whoever writes to it, perhaps for ever.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | flags)
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    return None


def is_real_directory(path: Path) -> bool:
    """Whether a path itself is a directory, and no link to one. Raises DiskFailed."""
    status = status_of(path)
    return status is not None and stat.S_ISDIR(status.st_mode)


def same_file(one: Path, other: Path) -> bool:
    """Whether two names are one inode; False when either is missing."""
    try:
        # lstat: a symbolic link to the file isn't a hard link.
        first, second = one.lstat(), other.lstat()
    except OSError:
        return False
    return (first.st_dev, first.st_ino) == (second.st_dev, second.st_ino)


def listed(directory: Path) -> list[Path]:
    """The entries of a directory, sorted; empty when there is none, or a link in its place. Raises DiskFailed."""
    plain, others = scan(directory)
    return sorted([*plain, *others])


def scan(directory: Path) -> tuple[list[Path], list[Path]]:
    """The regular files of a directory, and its other entries; nothing where there is none. Raises DiskFailed."""
    plain: list[Path] = []
    others: list[Path] = []
    try:
        # By a descriptor: a path could be replaced by a link between two steps.
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            with os.scandir(fd) as entries:
                for each in entries:
                    kind = plain if each.is_file(follow_symlinks=False) else others
                    kind.append(directory / each.name)
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno in _NO_DIRECTORY:
            return [], []
        if is_exhaustion(error):
            raise exhausted(f"can't list {directory}", error) from error
        raise DiskFailed(f"can't list {directory}: {error.strerror}") from error
    return plain, others


def _open_new(path: Path, mode: int) -> int:
    """Open a temporary file for writing, empty. A link of its name must not redirect the writes."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.open(path, flags, mode)


def _allocate(fd: int, size: int) -> None:
    """Make a file as large as `size`, with its blocks where the filesystem can; on an error it is as it was."""
    before = os.fstat(fd).st_size
    try:
        # Before the size is set: a file that has its size without its blocks would count as stored.
        if size > SMALL_BYTES:
            _fallocate(fd, size)
        os.ftruncate(fd, size)
    except OSError:
        # What came of it on a full disk would stay, and keep it full.
        with suppress(OSError):
            os.ftruncate(fd, before)
        raise


def _fallocate(fd: int, size: int) -> None:
    # Not posix_fallocate: where the filesystem can't, glibc writes every block.
    if _libc.fallocate(fd, 0, 0, size) == 0:
        return
    code = ctypes.get_errno()
    if code not in _NO_FALLOCATE:
        raise OSError(code, os.strerror(code))


def _mapped(path: Path, error: OSError) -> WeightyardError:
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        return NoSpace(
            f"no space left for {path}: {reason}",
            hint="Free space, lower the store's budget, or use --root on a larger disk.",
        )
    if error.errno in _DENIED:
        return NotWritable(
            f"can't write {path}: {reason}",
            hint="Choose another --root, or give this user the right to write there.",
        )
    if error.errno == errno.ENOENT:
        return Vanished(
            f"{path} was removed while it was used",
            hint="Try again. Only `weightyard` may remove files of a cache; `weightyard check --repair` mends it.",
        )
    if is_exhaustion(error):
        return exhausted(f"can't use {path} now", error)
    return DiskFailed(
        f"the disk failed at {path}: {reason}",
        hint="Look at the kernel's log (dmesg) and run `weightyard check`.",
    )


def _link_refused(path: Path, error: OSError) -> LinkRefused:
    return LinkRefused(
        f"the filesystem won't make a hard link at {path}: {error.strerror}",
        hint="Keep the whole store on one filesystem that has hard links (ext4, XFS, btrfs).",
    )
