"""Measures the parts of a pull on this machine: what its cores and disk allow at best.

The parts run concurrently, each in its own process, as in a pull: a core's throughput depends on the load of the
others, with which it shares caches and memory. The cost of each part alone is measured too.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import urllib3
from blake3 import blake3

_BUFFER = 256 << 10


@dataclass(frozen=True)
class Parts:
    """CPU seconds per GB of each part, and seconds per GB until the disk has made bytes durable (alone)."""

    receive: float
    server: float
    write: float
    sha256: float
    blake3: float
    disk: float = 0.0

    def cpu(self) -> float:
        """CPU seconds per GB of all parts."""
        return self.receive + self.server + self.write + self.sha256 + self.blake3

    def bound(self, cores: int) -> float:
        """Seconds per GB that no pull can beat: all parts spread evenly over the cores, or the disk."""
        return max(self.cpu() / cores, self.disk)


@dataclass(frozen=True)
class Task:
    """The parts' input: the blobs of a model, each with its URL and its size in bytes, and a file to write."""

    blobs: tuple[tuple[str, int], ...]
    path: Path

    @property
    def size(self) -> int:
        """Bytes of all blobs; each part processes as many."""
        return sum(size for _, size in self.blobs)

    def parts(self) -> dict[str, Callable[[], None]]:
        """The parts of a pull's own work, by their field names in Parts."""
        buffer = memoryview(bytearray(os.urandom(_BUFFER)))
        return {
            "receive": lambda: _receive(self, buffer),
            "write": lambda: _write(self.path, self.size, buffer),
            "sha256": lambda: _feed(hashlib.sha256().update, self.size, buffer),
            "blake3": lambda: _feed(blake3().update, self.size, buffer),
        }


def measure_parts(task: Task, server_cpu: Callable[[], float]) -> tuple[Parts, Parts]:
    """One measurement of all parts concurrently, and one of each alone."""
    try:
        alone = _measured(_one_by_one, task, server_cpu)
        task.path.unlink()
        together = _measured(_at_once, task, server_cpu)
        return replace(together, disk=alone.disk), alone
    finally:
        task.path.unlink(missing_ok=True)


def _measured(
    run: Callable[[Task], dict[str, float]], task: Task, server_cpu: Callable[[], float]
) -> Parts:
    before = server_cpu()
    seconds = {**run(task), "server": server_cpu() - before}
    return Parts(**{name: value / (task.size / 1e9) for name, value in seconds.items()})


def _one_by_one(task: Task) -> dict[str, float]:
    seconds: dict[str, float] = {}
    for name, part in task.parts().items():
        began = time.perf_counter()
        seconds[name] = _cpu(part)
        if name == "write":
            seconds["disk"] = time.perf_counter() - began
    return seconds


def _at_once(task: Task) -> dict[str, float]:
    context = multiprocessing.get_context("spawn")
    results: SimpleQueue[tuple[str, float]] = context.SimpleQueue()
    names = list(task.parts())
    # All parts start at the same moment, after the interpreters' start, which isn't part of a pull.
    ready = context.Barrier(len(names))
    children = [
        context.Process(target=_child, args=(name, task, ready, results), daemon=True)
        for name in names
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
        if child.exitcode != 0:
            raise SystemExit("a part of the pull could not be measured")
    return dict(results.get() for _ in names)


def _child(name: str, task: Task, ready: Barrier, results: SimpleQueue[tuple[str, float]]) -> None:
    part = task.parts()[name]
    ready.wait()
    results.put((name, _cpu(part)))


def _cpu(work: Callable[[], None]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def _receive(task: Task, buffer: memoryview) -> None:
    with urllib3.PoolManager(retries=False) as pool:
        for url, size in task.blobs:
            answer = pool.request(
                "GET", url, headers={"Accept-Encoding": "identity"}, preload_content=False
            )
            got = 0
            while count := answer.readinto(buffer):
                got += count
            if got != size:
                raise SystemExit(f"the registry sent {got} of {size} bytes")
            answer.release_conn()


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
    """Raises SystemExit when the disk has less free space than `size`."""
    free = shutil.disk_usage(work).free
    if free < size:
        raise SystemExit(f"{work} has {free / 1e9:.1f} GB free, {size / 1e9:.1f} are needed")
