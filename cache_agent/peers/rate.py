"""Ends a transfer from a peer that crawls: one slow node must not hold up a chunk that others could give."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from modelimage.errors import Unreachable
from modelimage.repository import BlobStream

# A peer is judged once it had so many seconds.
GRACE_SECONDS: Final = 3.0
MIN_RATE: Final = 64 << 10
_TIMES_SLOWER: Final = 20.0


class TooSlow(Unreachable):
    """A peer sends far more slowly than others do."""


@dataclass
class RateBaseline:
    """What transfers from peers usually reach here, bytes per second, and what is too slow. Safe for threads."""

    usual: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, size: int, seconds: float) -> None:
        """A transfer ended well."""
        rate = size / max(seconds, 1e-3)
        with self._lock:
            self.usual = rate if not self.usual else self.usual * 0.8 + rate * 0.2

    def is_too_slow(self, size: int, seconds: float) -> bool:
        """Whether so many bytes in so many seconds are too few to go on."""
        if seconds < GRACE_SECONDS:
            return False
        return size / seconds < max(MIN_RATE, self.usual / _TIMES_SLOWER)


class PacedStream:
    """A stream that ends with TooSlow when it crawls."""

    def __init__(
        self, stream: BlobStream, pace: RateBaseline, monotonic: Callable[[], float]
    ) -> None:
        self._stream, self._pace, self._monotonic = stream, pace, monotonic
        self._began = self._last = monotonic()
        self.received = 0
        self.closed = False

    @property
    def seconds(self) -> float:
        return self._monotonic() - self._began

    @property
    def quiet(self) -> float:
        """Seconds since the last byte."""
        return self._monotonic() - self._last

    def readinto(self, buffer: memoryview, /) -> int:
        count = self._stream.readinto(buffer)
        self.received += count
        self._last = self._monotonic()
        if count and self._pace.is_too_slow(self.received, self.seconds):
            raise TooSlow(f"{self.received} bytes in {self.seconds:.0f} s")
        return count

    def close(self) -> None:
        self.closed = True
        self._stream.close()
