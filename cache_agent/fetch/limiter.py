"""How many of the workers fetch at once: as many as there are cores, and more while the cores wait for the network.

Where the cores are what a pull waits for, another transfer only shares them, and its bytes wait in the socket until
they have left the processor's caches. Where the network is, or one slow source, another transfer is what helps.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

# So long is what the cores do looked at, in seconds; a worker that wasn't let in asks again after it.
WINDOW_SECONDS: Final = 0.25


def worth_another(active: int, cores: int, used: float) -> bool:
    """Whether one more transfer beside `active` finds a core free. `used`: cores that this process kept busy lately."""
    return active < cores or used < cores / 2


class ConcurrencyLimiter:
    """Who of the workers is at work. Not safe for threads: the engine asks under its lock."""

    def __init__(
        self,
        cores: int,
        monotonic: Callable[[], float],
        cpu_seconds: Callable[[], float] = time.process_time,
    ) -> None:
        self._cores, self._monotonic, self._cpu_seconds = cores, monotonic, cpu_seconds
        self._active = 0
        self._used = float(cores)
        self._since = self._cpu_then = 0.0

    def has_room(self) -> bool:
        """Whether one more worker may begin."""
        if self._active:
            self._look()
        return worth_another(self._active, self._cores, self._used)

    def join(self) -> None:
        """One more worker begins. The first finds the cores taken as busy until they were seen for a while."""
        if not self._active:
            self._used = float(self._cores)
            self._mark()
        self._active += 1

    def leave(self) -> None:
        """A worker has ended what it did."""
        self._active -= 1

    def _look(self) -> None:
        seconds = self._monotonic() - self._since
        if seconds >= WINDOW_SECONDS:
            self._used = (self._cpu_seconds() - self._cpu_then) / seconds
            self._mark()

    def _mark(self) -> None:
        self._since, self._cpu_then = self._monotonic(), self._cpu_seconds()
