"""Bandwidth caps: token buckets that say how long to pause after so many bytes. No sleeping here; time is given."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Final

# How much may come at once, in seconds of the rate.
_BURST_SECONDS: Final = 0.25
_LEAST_BURST: Final = 16 << 10


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

    def burst(self, size: int) -> int:
        """How many of `size` bytes to ask for at once, so that they come steadily and progress is seen."""
        rate = self._rate
        return min(size, max(_LEAST_BURST, int(rate * _BURST_SECONDS))) if rate > 0 else size

    def take(self, size: int) -> float:
        """Count `size` bytes; the seconds to pause now to keep the rate."""
        if self._rate <= 0:
            return 0.0
        with self._lock:
            now = self._monotonic()
            self._free_at = max(self._free_at, now - _BURST_SECONDS) + size / self._rate
            return max(0.0, self._free_at - now)


class Caps:
    """Several caps at once, until they are lifted: for a transfer that nobody waits for yet. Safe for threads."""

    def __init__(self, caps: Sequence[Throttle]) -> None:
        self._caps = tuple(caps)
        self._lifted = threading.Event()

    def lift(self) -> None:
        """No cap from now on; who pauses goes on at once."""
        self._lifted.set()

    def burst(self, size: int) -> int:
        """See `Throttle.burst`."""
        if self._lifted.is_set():
            return size
        return min((cap.burst(size) for cap in self._caps), default=size)

    def take(self, size: int) -> float:
        """See `Throttle.take`."""
        if self._lifted.is_set():
            return 0.0
        return max((cap.take(size) for cap in self._caps), default=0.0)

    def pause(self, seconds: float) -> None:
        """Wait so long, or until the caps are lifted."""
        self._lifted.wait(seconds)
