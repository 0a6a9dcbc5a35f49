"""A clock for limits that a busy machine must not run into: it counts the time in which the machine stood idle.

What a test waits for may need any time on a slow or loaded machine. It has failed when nothing happens any more, which
shows as a machine with nothing to do. So limits of tests are in *idle seconds*: the clock stands while a core works,
for whoever it be. Work that never ends (an endless loop, a load that stays) would stop it for good, so it always runs
at a twentieth of the wall's speed at least.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SLOWEST = 1 / 20
SAMPLE_SECONDS = 0.2  # the kernel counts in hundredths of a second
_STAT = Path("/proc/stat")
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Sample:
    """The wall's clock, and seconds in which the machine's cores, added up, had nothing to do."""

    wall: float
    idle: float


def idle_seconds(before: Sample, after: Sample, *, cores: int) -> float:
    """The part of the time between two samples that counts: none of it while one core or more was at work."""
    wall = after.wall - before.wall
    at_work = cores * wall - (after.idle - before.idle)
    return min(max(wall - at_work, wall * SLOWEST), wall)


class IdleClock:
    """Idle seconds since it was made. Calls in quick succession get one answer."""

    def __init__(self, read: Callable[[], Sample] | None = None, *, cores: int = 0) -> None:
        self._read = read or read_sample
        self._cores = cores or count_cores(_STAT.read_text())
        self._last = self._read()
        self._counted = 0.0

    def __call__(self) -> float:
        now = self._read()
        if now.wall - self._last.wall >= SAMPLE_SECONDS:
            self._counted += idle_seconds(self._last, now, cores=self._cores)
            self._last = now
        return self._counted


def read_sample() -> Sample:
    """The machine now. Waiting for a disk isn't idleness (proc(5), /proc/stat: the fourth number alone is)."""
    return Sample(time.monotonic(), parse_idle(_STAT.read_text()))


def parse_idle(stat: str) -> float:
    """The idle seconds of all cores in /proc/stat's first line, `cpu user nice system idle iowait ...`."""
    return int(stat.split(maxsplit=5)[4]) / _TICKS


def count_cores(stat: str) -> int:
    """The cores that /proc/stat counts, each a line `cpuN ...`: in a container not always as many as Python counts."""
    return sum(line.startswith("cpu") and line[3:4].isdigit() for line in stat.splitlines()) or 1
