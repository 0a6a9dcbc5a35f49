"""The Residency role: brings models into memory within a budget, and lets go under pressure.

Warming is advice to the kernel: pages may go again. Only `lock` keeps them, and counts fully against the budget.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cache_agent.observability.events import Events
from cache_agent.residency.pages import Locked, Resident, resident
from cache_agent.residency.pressure import DEFAULT_LIMIT, MemoryFacts
from cache_agent.store.partials import open_for_reading, read_range
from modelimage.errors import NoSpace
from modelimage.ranges import ByteRange

_STEP: Final = 32 << 20


@dataclass(frozen=True, slots=True)
class Residency:
    """What warming did: bytes read, what is in memory now, who is charged, and why it stopped early if it did."""

    read: int
    now: Resident
    cgroup: str
    stopped: str | None = None


@dataclass
class PageCacheWarmer:
    """One node's memory tier. `budget` caps what it asks for at once, in bytes; 0 means what the machine has free."""

    facts: MemoryFacts
    budget: int = 0
    pressure_limit: float = DEFAULT_LIMIT
    pause: Callable[[int], None] = lambda count: None
    events: Events = field(default_factory=Events)
    _locked: dict[Path, Locked] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def measure(self, files: Sequence[Path]) -> Resident:
        """How much of these files is in memory."""
        return sum((resident(path) for path in files), Resident(0, 0, believable=True))

    def warm(self, files: Sequence[Path]) -> Residency:
        """Read files into the page cache, in order. Raises NoSpace when they don't fit the budget, DiskFailed."""
        before = self.measure(files)
        self._admit(before.size - (before.resident if before.believable else 0))
        done, stopped = 0, None
        for path in files:
            size = path.stat().st_size
            with open_for_reading(path) as fd:
                for start in range(0, size, _STEP):
                    stopped = self._pressed()
                    if stopped:
                        break
                    for view in read_range(fd, path, ByteRange(start, min(size, start + _STEP))):
                        done += len(view)
                        self.pause(len(view))
            if stopped:
                break
        now = self.measure(files)
        self.events.warmed(max(0, now.resident - before.resident), before.resident)
        return Residency(done, now, self.facts.cgroup(), stopped)

    def lock(self, files: Sequence[Path]) -> int:
        """Keep files in memory until `unlock`; bytes locked. Raises NoSpace over budget, NotWritable over the limit."""
        self._admit(sum(path.stat().st_size for path in files))
        with self._lock:
            for path in files:
                if path not in self._locked:
                    self._locked[path] = Locked(path)
        return self.locked(files)

    def locked(self, files: Sequence[Path]) -> int:
        """How many bytes of these files are locked."""
        return sum(held.size for path, held in self._locked.items() if path in set(files))

    def unlock(self, files: Sequence[Path]) -> None:
        """Let files go; those that weren't locked are no error."""
        with self._lock:
            for path in files:
                held = self._locked.pop(path, None)
                if held is not None:
                    held.release()

    def relieve(self) -> bool:
        """Under pressure, let everything go that is locked. Whether anything was."""
        if self._pressed() is None or not self._locked:
            return False
        self.unlock(list(self._locked))
        return True

    def _admit(self, need: int) -> None:
        room = (self.budget or self.facts.available()) - sum(
            held.size for held in self._locked.values()
        )
        if need > room:
            raise NoSpace(
                f"not enough memory: need {need} bytes, the memory tier has {max(0, room)}",
                hint="Raise the memory budget, or let other models go.",
            )

    def _pressed(self) -> str | None:
        some = self.facts.pressure().some
        if some > self.pressure_limit:
            return f"memory pressure is {some:g}%, above {self.pressure_limit:g}%"
        return None
