"""What the parts of a pull cost alone, on this machine, now: what the cores and the disk let a pull reach at best."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import urllib3
from blake3 import blake3

_BUFFER = 256 << 10


@dataclass(frozen=True)
class Parts:
    """CPU seconds per GB of each part, and the seconds per GB that the disk takes to have bytes durable."""

    receive: float
    server: float
    write: float
    sha256: float
    blake3: float
    disk: float

    def cpu(self) -> float:
        """CPU seconds per GB of all of them."""
        return self.receive + self.server + self.write + self.sha256 + self.blake3

    def bound(self, cores: int) -> float:
        """Seconds per GB that no pull can beat: all parts spread over the cores, or the disk."""
        return max(self.cpu() / cores, self.disk)


def measure_parts(url: str, size: int, work: Path, server_cpu: Callable[[], float]) -> Parts:
    """One measurement of each part, with `size` bytes: receiving a blob at `url`, writing, hashing."""
    buffer = memoryview(bytearray(os.urandom(_BUFFER)))
    before = server_cpu()
    receive = _cpu(lambda: _receive(url, size, buffer))
    server = server_cpu() - before
    wall = time.perf_counter()
    write = _cpu(lambda: _write(work / "part", size, buffer))
    disk = time.perf_counter() - wall
    (work / "part").unlink()
    whole = _cpu(lambda: _feed(hashlib.sha256().update, size, buffer))
    chunk = _cpu(lambda: _feed(blake3().update, size, buffer))
    each = (receive, server, write, whole, chunk, disk)
    return Parts(*(seconds / (size / 1e9) for seconds in each))


def cores_here() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _cpu(work: Callable[[], None]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def _receive(url: str, size: int, buffer: memoryview) -> None:
    pool = urllib3.HTTPConnectionPool(urlsplit(url).netloc, retries=False)
    headers = {"Range": f"bytes=0-{size - 1}", "Accept-Encoding": "identity"}
    answer = pool.request("GET", urlsplit(url).path, headers=headers, preload_content=False)
    got = 0
    while count := answer.readinto(buffer):
        got += count
    pool.close()
    if got != size:
        raise SystemExit(f"the registry sent {got} of {size} bytes")


def _write(path: Path, size: int, buffer: memoryview) -> None:
    with path.open("wb", buffering=0) as file:
        os.posix_fallocate(file.fileno(), 0, size)
        for _ in range(0, size, _BUFFER):
            file.write(buffer)
        os.fsync(file.fileno())


def _feed(update: Callable[[memoryview], object], size: int, buffer: memoryview) -> None:
    for _ in range(0, size, _BUFFER):
        update(buffer)


def room_for(work: Path, size: int) -> None:
    """Raises SystemExit when the disk can't take so many bytes."""
    free = shutil.disk_usage(work).free
    if free < size:
        raise SystemExit(f"{work} has {free / 1e9:.1f} GB free, {size / 1e9:.1f} are needed")
