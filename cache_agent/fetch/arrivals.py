"""When the bytes of a pull came: the rate of the last seconds, and for how long none has come. In memory only."""

from __future__ import annotations

import threading
from collections import deque
from typing import Final

SPAN: Final = 10.0  # seconds over which a rate is measured
# A longer silence ends what is measured. A source under a cap, or one that is asked for the next range, is shorter.
SILENCE: Final = 5.0
_STEP: Final = 0.5


class Arrivals:
    """The bytes that came in the last ten seconds without a silence. Thread-safe; times are of the caller's clock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Each step's number and bytes, oldest first.
        self._steps: deque[tuple[int, int]] = deque()
        self._began = 0.0
        self._last: float | None = None

    def add(self, size: int, now: float) -> None:
        """Count bytes that have come just now."""
        with self._lock:
            if self._last is None or now - self._last > SILENCE:
                # What came before a silence says nothing of what comes after it.
                self._steps.clear()
                self._began = now
            self._last = max(now, self._last or now)
            step = int(now / _STEP)
            if self._steps and self._steps[-1][0] >= step:
                last, had = self._steps.pop()
                step, size = last, had + size
            self._steps.append((step, size))
            while self._steps[0][0] < _first_step(now):
                self._steps.popleft()

    def rate(self, now: float) -> float:
        """Bytes per second; 0 in a silence, and before there is enough to tell."""
        with self._lock:
            if self._last is None or now - self._last > SILENCE:
                return 0.0
            first = _first_step(now)
            seconds = now - max(self._began, first * _STEP)
            came = sum(size for step, size in self._steps if step >= first)
        return came / seconds if seconds >= _STEP else 0.0

    def quiet(self, now: float) -> float | None:
        """Seconds since the last byte came; None before the first."""
        with self._lock:
            return None if self._last is None else max(0.0, now - self._last)


def _first_step(now: float) -> int:
    """The first step that still counts. Whole steps do: a rate over a part of one would jump with every step."""
    return int(now / _STEP) - round(SPAN / _STEP) + 1
