"""Limits how many workers fetch concurrently: one per core, and more while the cores wait for the network.

When the cores are the bottleneck, another transfer only shares them, and its bytes stay in the socket until they have
left the processor's caches. When the network or one slow source is the bottleneck, another transfer helps.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

# The CPU use is averaged over this many seconds; a worker that wasn't admitted retries after it.
WINDOW_SECONDS: Final = 0.25


def worth_another(active: int, cores: int, used: float) -> bool:
    """Whether one more transfer beside `active` has a free core. `used`: cores this process kept busy recently."""
    return active < cores or used < cores / 2


class ConcurrencyLimiter:
    """Counts active workers and admits more. Not thread-safe: the engine calls it under its lock."""

    def __init__(
        self,
        cores: int,
        monotonic: Callable[[], float],
        cpu_seconds: Callable[[], float] = time.process_time,
    ) -> None:
        # CPU time of the whole process: hashing, TLS and the servers share the same cores.
        self._cores, self._monotonic, self._cpu_seconds = cores, monotonic, cpu_seconds
        self._active = 0
        self._used = float(cores)
        self._since = self._cpu_then = 0.0

    def has_slot(self) -> bool:
        """Whether one more worker may start."""
        if self._active:
            self._look()
        return worth_another(self._active, self._cores, self._used)

    def join(self) -> None:
        """Count one more worker. The first one assumes busy cores until a full window was measured."""
        if not self._active:
            self._used = float(self._cores)
            self._mark()
        self._active += 1

    def leave(self) -> None:
        """Count one worker less."""
        self._active -= 1

    def _look(self) -> None:
        seconds = self._monotonic() - self._since
        if seconds >= WINDOW_SECONDS:
            self._used = (self._cpu_seconds() - self._cpu_then) / seconds
            self._mark()

    def _mark(self) -> None:
        self._since, self._cpu_then = self._monotonic(), self._cpu_seconds()
