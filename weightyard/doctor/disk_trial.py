"""Measures a disk and tests hard links: writes one file through to the disk, reads, links and removes it."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_BLOCK: Final = 8 << 20


@dataclass(frozen=True, slots=True)
class Trial:
    """Rates in bytes per second. `problem` says why the trial ended early."""

    write_rate: float | None = None
    read_rate: float | None = None
    hard_links: bool | None = None
    problem: str | None = None


def try_disk(directory: Path, size: int, *, clock: Callable[[], float] = time.monotonic) -> Trial:
    """Writes `size` bytes (0: only what the link test needs) below an existing directory.

    Leaves nothing behind and raises nothing. The file is written with fsync, and dropped from the page cache before it
    is read, so that the disk is measured and not memory.
    """
    try:
        free = os.statvfs(directory)
        # Twice the size: a trial must not bring a disk that is in use near its end.
        if size * 2 > free.f_bavail * free.f_frsize:
            return Trial(problem=f"less than {2 * size} bytes are free")
        with tempfile.TemporaryDirectory(prefix=".weightyard-doctor-", dir=directory) as folder:
            path = Path(folder, "trial")
            written = _write(path, size, clock)
            read = _read(path, size, clock) if size else None
            return Trial(written if size else None, read, _links(path))
    except OSError as error:
        return Trial(problem=f"{directory}: {error.strerror}")


def _write(path: Path, size: int, clock: Callable[[], float]) -> float:
    block = (
        os.urandom(min(size, _BLOCK)) or b"\0"
    )  # random: filesystems compress, and disks optimize zeros
    started = clock()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        left = size
        while left > 0:
            left -= os.write(fd, block[:left])
        # Within the measured time: without it, it would be the page cache's speed.
        os.fsync(fd)
    finally:
        os.close(fd)
    return size / max(clock() - started, 1e-9)


def _read(path: Path, size: int, clock: Callable[[], float]) -> float:
    buffer = bytearray(_BLOCK)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # What was just written is still in memory: the disk is what is measured.
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        started = clock()
        while os.readv(fd, [buffer]):
            pass
        return size / max(clock() - started, 1e-9)
    finally:
        os.close(fd)


def _links(path: Path) -> bool:
    try:
        os.link(path, path.with_name("link"))
    except OSError:
        return False
    return path.stat().st_nlink == 2
