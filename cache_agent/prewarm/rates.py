"""How fast each fetch goes, smoothed over its last seconds. Memory only; time is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from cache_agent.fetch.values import PullSnapshot
from cache_agent.prewarm.report import Progress
from cache_agent.prewarm.values import Target

_SPAN: Final = 10.0  # seconds over which a rate is averaged
_STEP: Final = 0.5


@dataclass
class Rates:
    """`monotonic` in seconds."""

    monotonic: Callable[[], float]
    _seen: dict[Target, list[tuple[float, int]]] = field(default_factory=dict)

    def progress(self, target: Target, snapshot: PullSnapshot) -> Progress:
        """A fetch's progress now, and its rate since at most ten seconds ago."""
        now = self.monotonic()
        points = self._seen.setdefault(target, [])
        if not points or now - points[-1][0] >= _STEP:
            points.append((now, snapshot.done))
        while len(points) > 1 and now - points[0][0] > _SPAN:
            points.pop(0)
        elapsed = now - points[0][0]
        # What was there before, resumed or shared, came in no time and says nothing of the rate.
        came = max(0, snapshot.done - max(points[0][1], snapshot.resumed + snapshot.reused))
        rate = came / elapsed if elapsed > 0 else 0.0
        return Progress(snapshot.done, snapshot.total, rate)

    def forget(self, target: Target) -> None:
        """It ended."""
        self._seen.pop(target, None)
