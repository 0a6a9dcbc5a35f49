"""System calls for mounting that Python doesn't wrap, made directly: no fork, no option parsing. Linux only.

Errors are OSError with the kernel's number; callers map them.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

_LOCKED_DOWN: Final = os.ST_RDONLY | os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC
_UMOUNT_NOFOLLOW: Final = 8
# The numbers are the same on every architecture.
_OPEN_TREE, _MOVE_MOUNT, _OPENAT2, _MOUNT_SETATTR = 428, 429, 437, 442
_CLONE: Final = (
    1 | os.O_CLOEXEC | 0x1000
)  # OPEN_TREE_CLONE, AT_EMPTY_PATH: clones the handle itself
_EMPTY_PATH: Final = 0x1000
_HANDLE_TO_HANDLE: Final = 0x04 | 0x40  # MOVE_MOUNT_F_EMPTY_PATH, _T_EMPTY_PATH
# Resolve below the directory, through no link: RESOLVE_BENEATH, _NO_SYMLINKS, _NO_MAGICLINKS.
_INSIDE: Final = 0x08 | 0x04 | 0x02
_HANDLE: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_MOUNT_ID, _MOUNT_ROOT = 0x1000, 0x2000  # STATX_MNT_ID; STATX_ATTR_MOUNT_ROOT, of attributes


def function(name: str, *types: Any) -> Callable[..., int]:
    """A C library function that returns a negative number on failure, wrapped to raise OSError then."""
    found = ctypes.CDLL(None, use_errno=True)[name]
    found.argtypes, found.errcheck = types, _check
    return found


def _check(result: Any, *_: object) -> Any:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


_text = ctypes.c_char_p
_umount2 = function("umount2", _text, ctypes.c_int)
_syscall = function("syscall", ctypes.c_long, ctypes.c_int, _text, ctypes.c_void_p, ctypes.c_size_t)
_open_tree = function("syscall", ctypes.c_long, ctypes.c_int, _text, ctypes.c_uint)
_mount_setattr = function(
    "syscall", ctypes.c_long, ctypes.c_int, _text, ctypes.c_uint, ctypes.c_void_p, ctypes.c_size_t
)
_move_mount = function(
    "syscall", ctypes.c_long, ctypes.c_int, _text, ctypes.c_int, _text, ctypes.c_uint
)
_statx = function("statx", ctypes.c_int, _text, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p)


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


class _MountAttributes(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns"))


class _Status(ctypes.Structure):
    """struct statx, 256 bytes, of which two members are read."""

    _fields_ = (
        ("before", ctypes.c_byte * 8), ("attributes", ctypes.c_uint64), ("between", ctypes.c_byte * 128),
        ("mount", ctypes.c_uint64), ("after", ctypes.c_byte * 104),
    )  # fmt: skip


@contextmanager
def opened(path: str | Path, inside: int | None = None) -> Iterator[int]:
    """Open a directory's handle (O_PATH). No link or `..` of the path leads out of the open directory `inside`."""
    if inside is None:
        fd = os.open(path, _HANDLE)
    else:
        # The kernel resolves the whole path itself: checking each component here would be a race.
        how = _OpenHow(_HANDLE, 0, _INSIDE)
        name, size = os.fsencode(path), ctypes.sizeof(how)
        fd = _syscall(_OPENAT2, inside, name, ctypes.byref(how), size)
    try:
        yield fd
    finally:
        os.close(fd)


def bind(source: int, target: int) -> None:
    """Bind one open directory to another: read-only, without devices, executables and set-user-id (Linux 5.12).

    The mount has its flags before it becomes visible. A later remount would affect this namespace's mount only: the
    node and its pods receive theirs by propagation and would keep a writable one.
    """
    copy = _open_tree(_OPEN_TREE, source, b"", _CLONE)
    try:
        # MOUNT_ATTR_RDONLY, _NOSUID, _NODEV, _NOEXEC have the same numbers as statvfs' flags.
        attributes = _MountAttributes(set=_LOCKED_DOWN)
        size = ctypes.sizeof(attributes)
        _mount_setattr(_MOUNT_SETATTR, copy, b"", _EMPTY_PATH, ctypes.byref(attributes), size)
        _move_mount(_MOVE_MOUNT, copy, b"", target, b"", _HANDLE_TO_HANDLE)
    finally:
        os.close(copy)


def is_locked_down(fd: int) -> bool:
    """Whether a handle's mount has all of `bind`'s restrictions."""
    return os.fstatvfs(fd).f_flag & _LOCKED_DOWN == _LOCKED_DOWN


def unmount(path: str) -> None:
    """Unmount the topmost mount at a path."""
    _umount2(os.fsencode(path), _UMOUNT_NOFOLLOW)


def is_mount(place: int) -> bool:
    """Whether a handle is the root of a mount."""
    return bool(_status(place).attributes & _MOUNT_ROOT)


def root_of(place: int) -> str:
    """The path within its filesystem that a mount shows, from mountinfo; empty when it isn't listed."""
    number = str(_status(place).mount)
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split(" ")
        if fields[0] == number:
            # The kernel marks a root that was removed.
            return fields[3].removesuffix("//deleted")
    return ""


def _status(fd: int) -> _Status:
    found = _Status()
    _statx(fd, b"", _EMPTY_PATH, _MOUNT_ID, ctypes.byref(found))
    return found
