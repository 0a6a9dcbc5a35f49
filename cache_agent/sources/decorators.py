"""Decorators for any source, each a source itself: bandwidth cap, circuit breaker.

None retries: the engine does, because only it has the other sources.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from cache_agent.sources.source import ChunkRange, Source, Tier
from cache_agent.sources.throttle import Caps, Throttle
from modelimage.errors import NotFound, Unreachable
from modelimage.repository import BlobStream


@dataclass(frozen=True)
class Wrapped:
    """A source that delegates to another."""

    inner: Source

    @property
    def tier(self) -> Tier:
        return self.inner.tier

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def authorizes(self) -> bool:
        return self.inner.authorizes

    @contextmanager
    def open(self, pieces: Sequence[ChunkRange]) -> Iterator[BlobStream]:
        """See `Source.open`."""
        with self.inner.open(pieces) as stream:
            yield stream


@dataclass(frozen=True)
class _CappedStream:
    """A stream with small reads and pauses, to keep a rate."""

    stream: BlobStream
    throttle: Throttle | Caps
    sleep: Callable[[float], object]

    def readinto(self, buffer: memoryview, /) -> int:
        count = self.stream.readinto(buffer[: self.throttle.burst(len(buffer))])
        pause = self.throttle.take(count)
        if pause:
            self.sleep(pause)
        return count

    def close(self) -> None:
        self.stream.close()


@dataclass(frozen=True)
class Limited(Wrapped):
    """A source with a bandwidth cap. `sleep` waits the given seconds."""

    throttle: Throttle | Caps
    sleep: Callable[[float], object]

    @contextmanager
    def open(self, pieces: Sequence[ChunkRange]) -> Iterator[BlobStream]:
        with self.inner.open(pieces) as stream:
            yield _CappedStream(stream, self.throttle, self.sleep)


@dataclass
class Breaker:
    """A circuit breaker: opens after `after` consecutive failures of one source, over all pulls, for `rest` seconds."""

    monotonic: Callable[[], float]
    after: int = 5
    rest: float = 30.0
    _failures: int = 0
    _until: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def is_open(self) -> bool:
        """Whether to reject requests. After the rest, one request in each `rest` seconds is let through as a probe."""
        with self._lock:
            now = self.monotonic()
            if self._failures < self.after or now >= self._until:
                # Set for the probe: the other callers stay rejected until it has ended.
                self._until = now + self.rest
                return False
            return True

    def note(self, *, failed: bool) -> None:
        """Record the result of a request."""
        with self._lock:
            self._failures = self._failures + 1 if failed else 0
            if failed:
                self._until = self.monotonic() + self.rest


@dataclass(frozen=True)
class WithBreaker(Wrapped):
    """A source with a circuit breaker: not used for a while after consecutive failures."""

    breaker: Breaker

    @contextmanager
    def open(self, pieces: Sequence[ChunkRange]) -> Iterator[BlobStream]:
        if self.breaker.is_open():
            # NotFound, so a pull excludes it and continues with its other sources immediately, without a backoff.
            raise NotFound(f"{self.name} failed too often and isn't used for a while")
        try:
            with self.inner.open(pieces) as stream:
                yield stream
        except Unreachable:
            # Only outages count: a NotFound or a refusal shows that the source works.
            self.breaker.note(failed=True)
            raise
        self.breaker.note(failed=False)
