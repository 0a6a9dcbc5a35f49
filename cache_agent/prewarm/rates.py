"""Measures the rate of each fetch over its last ten seconds, and caps it. In memory only; the clock is injected."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from cache_agent.api.node_cache import MOST_SOURCES
from cache_agent.fetch.values import PullSnapshot
from cache_agent.prewarm.report import FetchProgress
from cache_agent.prewarm.values import DesiredModel, FetchTarget
from cache_agent.sources.throttle import Throttle

_SPAN: Final = 10.0  # seconds over which a rate is averaged
_STEP: Final = 0.5
# Bytes per second. A source under a lower cap would look stalled.
_LEAST_RATE: Final = 1_000_000


@dataclass
class Rates:
    """The rates of all running fetches. `monotonic` in seconds."""

    monotonic: Callable[[], float]
    # Samples of (monotonic time, bytes done), at least `_STEP` seconds apart.
    _seen: dict[FetchTarget, list[tuple[float, int]]] = field(default_factory=dict)

    def progress(self, target: FetchTarget, snapshot: PullSnapshot) -> FetchProgress:
        """A fetch's progress now, and its rate over at most the last ten seconds."""
        now = self.monotonic()
        points = self._seen.setdefault(target, [])
        if not points or now - points[-1][0] >= _STEP:
            points.append((now, snapshot.done))
        while len(points) > 1 and now - points[0][0] > _SPAN:
            points.pop(0)
        elapsed = now - points[0][0]
        # Resumed and reused bytes took no time to arrive, so they would inflate the rate.
        came = max(0, snapshot.done - max(points[0][1], snapshot.resumed + snapshot.reused))
        rate = came / elapsed if elapsed > 0 else 0.0
        return FetchProgress(snapshot.done, snapshot.total, rate, _sources(snapshot))

    def forget(self, target: FetchTarget) -> None:
        """The fetch ended: drop its samples."""
        self._seen.pop(target, None)


def _sources(snapshot: PullSnapshot) -> tuple[str, ...]:
    """The sources that gave most, by name: an order by bytes would change, and be reported, all the time."""
    most = sorted(snapshot.by_source, key=lambda each: -each[2])[:MOST_SOURCES]
    return tuple(sorted(f"{tier} {name}" for tier, name, size in most if size))


class RateCaps:
    """The caps on fetches, in bytes per second: `bandwidth` for all together (0: none), and each model's own."""

    def __init__(self, bandwidth: int, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._shared = (self._throttle(bandwidth),) if bandwidth else ()

    def of(self, desired: DesiredModel) -> tuple[Throttle, ...]:
        """The throttles that a fetch of this model passes through."""
        own = (self._throttle(desired.bandwidth),) if desired.bandwidth else ()
        return (*self._shared, *own)

    def _throttle(self, rate: int) -> Throttle:
        return Throttle(max(rate, _LEAST_RATE), self._monotonic)
