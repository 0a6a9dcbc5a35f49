"""The caps on the rates of fetches: all together, and each model's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cache_agent.prewarm.values import DesiredModel
from cache_agent.sources.throttle import Throttle

# Bytes per second. A source under a lower cap would look stalled.
_LEAST_RATE: Final = 1_000_000


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
