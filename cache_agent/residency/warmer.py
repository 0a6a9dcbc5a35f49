"""The page cache warmer: reads models into memory within a budget, and backs off under memory pressure.

The kernel may evict warmed pages at any time. Only `lock` keeps them, and counts fully against the budget.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cache_agent.observability.events import Events, ModelWarmed
from cache_agent.residency.pages import Locked, Resident, resident
from cache_agent.residency.pressure import DEFAULT_LIMIT, MemoryFacts
from cache_agent.store.disk import plain_size
from cache_agent.store.partials import open_for_reading, read_range
from modelimage.errors import NoSpace
from modelimage.ranges import ByteRange

_STEP: Final = 32 << 20


@dataclass(frozen=True, slots=True)
class Residency:
    """The result of warming: bytes read, bytes resident now, the charged cgroup, and the reason for an early stop."""

    read: int
    now: Resident
    cgroup: str
    stopped: str | None = None


@dataclass
class PageCacheWarmer:
    """One node's memory tier. `budget`: bytes that one call may read in; 0: the machine's available memory."""

    facts: MemoryFacts
    budget: int = 0
    pressure_limit: float = DEFAULT_LIMIT
    pause: Callable[[int], None] = lambda count: None
    events: Events = field(default_factory=Events)
    _locked: dict[Path, Locked] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def set_budget(self, budget: int) -> None:
        """Change the budget, in bytes; 0: the machine's available memory."""
        self.budget = budget

    def measure(self, files: Sequence[Path]) -> Resident:
        """Resident bytes of these files."""
        return sum((resident(path) for path in files), Resident(0, 0, believable=True))

    def warm(self, files: Sequence[Path]) -> Residency:
        """Read files into the page cache, in order. Raises DiskFailed; NoSpace when they exceed the budget."""
        before = self.measure(files)
        # A measurement that isn't believable counts as nothing resident.
        self._admit(before.size - (before.resident if before.believable else 0))
        done, stopped = 0, None
        for path in files:
            with open_for_reading(path) as fd:
                size = os.fstat(fd).st_size
                for start in range(0, size, _STEP):
                    # At each step: warming itself may be what causes the pressure.
                    stopped = self._pressed()
                    if stopped:
                        break
                    for view in read_range(fd, path, ByteRange(start, min(size, start + _STEP))):
                        done += len(view)
                        self.pause(len(view))
            if stopped:
                break
        now = self.measure(files)
        self.events.emit(ModelWarmed(max(0, now.resident - before.resident), before.resident))
        return Residency(done, now, self.facts.cgroup(), stopped)

    def lock(self, files: Sequence[Path]) -> int:
        """Lock files in memory until `unlock`; returns bytes locked. Raises NoSpace
        over budget, NotWritable over the limit."""
        self._admit(sum(plain_size(path) or 0 for path in files))
        with self._lock:
            for path in files:
                if path not in self._locked:
                    self._locked[path] = Locked(path)
        return self.locked(files)

    def locked(self, files: Sequence[Path]) -> int:
        """Locked bytes of these files."""
        return sum(held.size for path, held in self._locked.items() if path in set(files))

    def unlock(self, files: Sequence[Path]) -> None:
        """Unlock files; those that weren't locked are no error."""
        with self._lock:
            for path in files:
                held = self._locked.pop(path, None)
                if held is not None:
                    held.release()

    def relieve(self) -> bool:
        """Under memory pressure, unlock everything; returns whether anything was locked."""
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
                hint="Raise tiers.memory_budget, or unlock other models.",
            )

    def _pressed(self) -> str | None:
        some = self.facts.pressure()
        if some > self.pressure_limit:
            return f"memory pressure is {some:g}%, above {self.pressure_limit:g}%"
        return None
