"""mount(2), umount2(2) and openat2(2), called directly: no fork, no parsing of options. Linux only.

Errors are OSError with the kernel's number; what they mean is the caller's to say.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_REMOUNT: Final = 32
MS_BIND: Final = 4096
UMOUNT_NOFOLLOW: Final = 8
LOCKED_DOWN: Final = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC
_RESOLVE_NO_MAGICLINKS: Final = 0x02
_RESOLVE_NO_SYMLINKS: Final = 0x04
_RESOLVE_BENEATH: Final = 0x08
_SYS_OPENAT2: Final = 437  # the same on every architecture

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [
    ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p
]  # fmt: skip
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]
_libc.syscall.restype = ctypes.c_long


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def open_beneath(directory: int, path: str) -> int:
    """A handle (O_PATH) of a directory below an open one: no symbolic link and no `..` on the way."""
    how = _OpenHow(
        os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC,
        0,
        _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS,
    )
    fd = _libc.syscall(
        ctypes.c_long(_SYS_OPENAT2),
        ctypes.c_int(directory),
        ctypes.c_char_p(os.fsencode(path)),
        ctypes.byref(how),
        ctypes.c_size_t(ctypes.sizeof(how)),
    )
    if fd < 0:
        raise _failure(path)
    return int(fd)


def bind(source: int, target: int) -> None:
    """Bind one open directory onto another."""
    _mount(_name(source), _name(target), MS_BIND)


def lock_down(path: str) -> None:
    """Make a bind mount read-only, without devices, programs and set-user-id."""
    _mount(None, path, MS_BIND | MS_REMOUNT | LOCKED_DOWN)


def unmount(path: str) -> None:
    """Take away what is mounted at a path."""
    if _libc.umount2(os.fsencode(path), UMOUNT_NOFOLLOW) != 0:
        raise _failure(path)


def is_locked_down(fd: int) -> bool:
    """Whether what is seen through a handle is mounted as `lock_down` does."""
    flags = os.fstatvfs(fd).f_flag
    wanted = os.ST_RDONLY | os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC
    return flags & wanted == wanted


def _mount(source: str | None, target: str, flags: int) -> None:
    given = None if source is None else os.fsencode(source)
    if _libc.mount(given, os.fsencode(target), None, flags, None) != 0:
        raise _failure(target)


def _name(fd: int) -> str:
    return f"/proc/self/fd/{fd}"


def _failure(path: str) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code), path)
