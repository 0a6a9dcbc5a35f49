"""Page cache access: measures which pages of a file are resident, and locks pages.

mincore(2) reports every page as resident to a process that neither owns nor may write the file (CVE-2019-5489), so such
a measurement is marked as not believable.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cache_agent.store.disk import reading
from cache_agent.store.partials import open_for_reading

PAGE: Final = mmap.PAGESIZE
_WINDOW: Final = 256 << 20

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64,
]  # fmt: skip
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_FAILED: Final = ctypes.c_void_p(-1).value


@dataclass(frozen=True, slots=True)
class Resident:
    """Resident bytes of a file. `believable` is False where the kernel hides the truth."""

    size: int
    resident: int
    believable: bool

    def __add__(self, other: Resident) -> Resident:
        return Resident(
            self.size + other.size,
            self.resident + other.resident,
            self.believable and other.believable,
        )


def resident(path: Path) -> Resident:
    """Measure one file without touching its pages. Raises DiskFailed."""
    with open_for_reading(path) as fd:
        status = os.fstat(fd)
        size, pages = status.st_size, 0
        # In windows, to bound the mapping and its residency vector.
        for start in range(0, size, _WINDOW):
            pages += _resident_pages(fd, path, start, min(_WINDOW, size - start))
    believable = os.geteuid() in (0, status.st_uid)
    # The last page may reach beyond the end of the file.
    return Resident(size, min(size, pages * PAGE), believable)


class Locked:
    """Pages of a file locked in memory until `release` or the end of the process, within RLIMIT_MEMLOCK."""

    def __init__(self, path: Path) -> None:
        with open_for_reading(path) as fd, reading(path):
            self.size = os.fstat(fd).st_size
            self._address = _map(fd, 0, self.size) if self.size else None
        if self._address is not None and _libc.mlock(self._address, self.size) != 0:
            code = ctypes.get_errno()
            # Unmapped first, or the failed mapping would leak.
            self.release()
            with reading(path):
                raise OSError(code, os.strerror(code))

    def release(self) -> None:
        """Unlock the pages. Idempotent."""
        address, self._address = self._address, None
        if address is not None:
            _libc.munmap(address, self.size)


def _resident_pages(fd: int, path: Path, start: int, size: int) -> int:
    with reading(path):
        address = _map(fd, start, size)
        try:
            vector = (ctypes.c_ubyte * -(-size // PAGE))()
            if _libc.mincore(address, size, vector) != 0:
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code))
        finally:
            _libc.munmap(address, size)
    # Only the lowest bit is defined (mincore(2)).
    return sum(page & 1 for page in bytes(vector))


def _map(fd: int, start: int, size: int) -> int:
    address = _libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, start)
    if address == _FAILED:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(address)
