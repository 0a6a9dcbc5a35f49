"""How many bytes came lately. In memory only; the clock is the caller's."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

SPAN: Final = 10.0  # seconds
_STEP: Final = 0.5
# Over less time a rate says nothing.
_SHORTEST: Final = 0.01


@dataclass
class RecentBytes:
    """The bytes of the last ten seconds, in steps of half a second. Not thread-safe."""

    # Each step's number and bytes, oldest first.
    _steps: deque[tuple[int, int]] = field(default_factory=deque)

    def add(self, size: int, now: float) -> None:
        """Count bytes that have come just now."""
        step = int(now / _STEP)
        if self._steps and self._steps[-1][0] == step:
            size += self._steps.pop()[1]
        self._steps.append((step, size))
        while self._steps[0][0] < _first_step(now):
            self._steps.popleft()

    def total(self, now: float) -> int:
        """The bytes of the steps that still count."""
        first = _first_step(now)
        return sum(size for step, size in self._steps if step >= first)


def recent_rate(size: int, began: float, now: float) -> float:
    """The rate, in bytes per second, at which `size` bytes came lately of something that began to come at `began`."""
    seconds = now - max(began, _first_step(now) * _STEP)
    return size / seconds if seconds >= _SHORTEST else 0.0


def _first_step(now: float) -> int:
    """The first step that still counts. Whole steps do: a rate over a part of one would jump with every step."""
    return int(now / _STEP) - round(SPAN / _STEP) + 1
