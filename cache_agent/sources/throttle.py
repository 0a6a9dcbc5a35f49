"""Bandwidth caps: token buckets that return how long to pause after a number of bytes. They never sleep themselves."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Final

# The bucket's size, in seconds of the rate.
_BURST_SECONDS: Final = 0.25
_LEAST_BURST: Final = 16 << 10


class Throttle:
    """A cap in bytes per second; 0: none. Thread-safe; all threads share the rate."""

    def __init__(self, rate: float, monotonic: Callable[[], float]) -> None:
        self._rate, self._monotonic = rate, monotonic
        # Time is booked for one caller after the other: two at once would book the same, and send twice the rate.
        self._lock = threading.Lock()
        self._free_at = monotonic()

    def set_rate(self, rate: float) -> None:
        """Change the cap."""
        with self._lock:
            self._rate = rate

    def burst(self, size: int) -> int:
        """The largest read, at most `size` bytes: small enough for a steady rate and visible progress."""
        rate = self._rate
        return min(size, max(_LEAST_BURST, int(rate * _BURST_SECONDS))) if rate > 0 else size

    def take(self, size: int) -> float:
        """Count `size` bytes; returns the seconds to pause now to keep the rate."""
        if self._rate <= 0:
            return 0.0
        with self._lock:
            now = self._monotonic()
            # Unused bandwidth is kept for one burst only: else a pause would be followed by a flood.
            self._free_at = max(self._free_at, now - _BURST_SECONDS) + size / self._rate
            return max(0.0, self._free_at - now)


class Caps:
    """Several caps on one transfer that can be lifted once a caller waits for it. Thread-safe."""

    def __init__(self, caps: Sequence[Throttle]) -> None:
        self._caps = tuple(caps)
        # An event: a thread that pauses for a cap of seconds goes on at once when a caller waits.
        self._lifted = threading.Event()

    def lift(self) -> None:
        """Remove all caps; threads in `pause` continue immediately."""
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
        # Every cap is charged; the slowest determines the pause.
        return max((cap.take(size) for cap in self._caps), default=0.0)

    def pause(self, seconds: float) -> None:
        """Wait `seconds`, or until the caps are lifted."""
        self._lifted.wait(seconds)
