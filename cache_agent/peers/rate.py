"""Ends transfers from very slow peers: one slow node must not delay a chunk that other peers have."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from modelimage.errors import Unreachable
from modelimage.repository import BlobStream

# A transfer isn't judged before it has run this many seconds.
GRACE_SECONDS: Final = 3.0
MIN_RATE: Final = 64 << 10
_TIMES_SLOWER: Final = 20.0


class PeerTooSlow(Unreachable):
    """A peer sends far more slowly than other peers do."""


@dataclass
class RateBaseline:
    """The usual rate of transfers from peers, in bytes per second, and the limit below it. Thread-safe."""

    usual: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, size: int, seconds: float) -> None:
        """Average in a successful transfer: bytes and seconds."""
        rate = size / max(seconds, 1e-3)
        with self._lock:
            self.usual = rate if not self.usual else self.usual * 0.8 + rate * 0.2

    def is_too_slow(self, size: int, seconds: float) -> bool:
        """Whether a transfer of `size` bytes in `seconds` is too slow to continue."""
        if seconds < GRACE_SECONDS:
            return False
        return size / seconds < max(MIN_RATE, self.usual / _TIMES_SLOWER)


class PacedStream:
    """A stream that raises TooSlow when its rate falls below the limit."""

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
            raise PeerTooSlow(f"{self.received} bytes in {self.seconds:.0f} s")
        return count

    def close(self) -> None:
        self.closed = True
        self._stream.close()
