"""Bandwidth caps: token buckets that say how long to pause after so many bytes. No sleeping here; time is given."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

# How much may come at once after a pause, in seconds of the rate.
_BURST_SECONDS: Final = 0.25


class Throttle:
    """A cap in bytes per second; 0 means none. Safe for several threads, which share the rate."""

    def __init__(self, rate: float, monotonic: Callable[[], float]) -> None:
        self._rate, self._monotonic = rate, monotonic
        self._lock = threading.Lock()
        self._free_at = monotonic()

    def set_rate(self, rate: float) -> None:
        """Another cap from now on."""
        with self._lock:
            self._rate = rate

    def take(self, size: int) -> float:
        """Count `size` bytes; the seconds to pause now to keep the rate."""
        if self._rate <= 0:
            return 0.0
        with self._lock:
            now = self._monotonic()
            self._free_at = max(self._free_at, now - _BURST_SECONDS) + size / self._rate
            return max(0.0, self._free_at - now)
