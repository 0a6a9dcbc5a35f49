"""What any source may be wrapped in, each a source itself: a bandwidth cap, a circuit breaker, a measurement.

Retrying is the engine's, as it alone knows the other sources.
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
    """A source around another."""

    inner: Source

    @property
    def tier(self) -> Tier:
        return self.inner.tier

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def proves(self) -> bool:
        return self.inner.proves

    @contextmanager
    def open(self, pieces: Sequence[ChunkRange]) -> Iterator[BlobStream]:
        """See `Source.open`."""
        with self.inner.open(pieces) as stream:
            yield stream


class _ToldStream:
    """A stream that tells of every read."""

    def __init__(self, stream: BlobStream, tell: Callable[[int], None]) -> None:
        self._stream, self._tell = stream, tell

    def readinto(self, buffer: memoryview, /) -> int:
        count = self._stream.readinto(buffer)
        self._tell(count)
        return count

    def close(self) -> None:
        self._stream.close()


@dataclass(frozen=True)
class _CappedStream:
    """A stream that brings little at a time, with pauses."""

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
    """At most so many bytes per second from this source. `sleep` waits."""

    throttle: Throttle | Caps
    sleep: Callable[[float], object]

    @contextmanager
    def open(self, pieces: Sequence[ChunkRange]) -> Iterator[BlobStream]:
        with self.inner.open(pieces) as stream:
            yield _CappedStream(stream, self.throttle, self.sleep)


@dataclass
class Breaker:
    """Counts failures in a row of one place, over all pulls. Open: the place isn't asked until the rest is over."""

    monotonic: Callable[[], float]
    after: int = 5
    rest: float = 30.0
    _failures: int = 0
    _until: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def is_open(self) -> bool:
        """Whether to leave the place alone. After the rest one request is let through to try."""
        with self._lock:
            now = self.monotonic()
            if self._failures < self.after or now >= self._until:
                self._until = now + self.rest
                return False
            return True

    def note(self, *, failed: bool) -> None:
        """How a request ended."""
        with self._lock:
            self._failures = self._failures + 1 if failed else 0
            if failed:
                self._until = self.monotonic() + self.rest


@dataclass(frozen=True)
class Breaking(Wrapped):
    """A source that is left alone after it failed several times in a row."""

    breaker: Breaker

    @contextmanager
    def open(self, pieces: Sequence[ChunkRange]) -> Iterator[BlobStream]:
        if self.breaker.is_open():
            # Said as 'not here', so that a pull goes on with its other sources at once.
            raise NotFound(f"{self.name} failed too often; it is left alone for a while")
        try:
            with self.inner.open(pieces) as stream:
                yield stream
        except Unreachable:
            self.breaker.note(failed=True)
            raise
        self.breaker.note(failed=False)


@dataclass
class Rate:
    """Bytes and seconds of one place, for `status` and for what a fetch costs."""

    size: int = 0
    seconds: float = 0.0
    failures: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, *, size: int, seconds: float, failed: bool) -> None:
        with self._lock:
            self.size += size
            self.seconds += seconds
            self.failures += failed

    def per_second(self) -> float:
        """Bytes a second of one stream; 0 before anything came."""
        return self.size / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Measured(Wrapped):
    """A source whose speed is known."""

    rate: Rate
    monotonic: Callable[[], float]

    @contextmanager
    def open(self, pieces: Sequence[ChunkRange]) -> Iterator[BlobStream]:
        started, counted, failed = self.monotonic(), [0], True

        def tell(count: int) -> None:
            counted[0] += count

        try:
            with self.inner.open(pieces) as stream:
                yield _ToldStream(stream, tell)
            failed = False
        finally:
            self.rate.add(size=counted[0], seconds=self.monotonic() - started, failed=failed)
