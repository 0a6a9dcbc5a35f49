"""Faults of sources and disks, each a named class."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.errors import AccessDenied, NotFound, RateLimited, Unreachable
from modelimage.ranges import ByteRange
from modelimage.repository import BlobStream, ImageReader
from tests.servers.process import wait_until


class Wrapped:
    """A reader in front of another one; subclasses change what they name."""

    def __init__(self, inner: ImageReader) -> None:
        self.inner = inner

    def resolve(self, name: str) -> Descriptor:
        return self.inner.resolve(name)

    def manifest(self, descriptor: Descriptor) -> bytes:
        return self.inner.manifest(descriptor)

    @contextmanager
    def blob(self, descriptor: Descriptor, wanted: ByteRange | None = None) -> Iterator[BlobStream]:
        with self.inner.blob(descriptor, wanted) as stream:
            yield stream

    def tags(self) -> list[str]:
        return self.inner.tags()


class BreaksAfter(Wrapped):
    """A source whose layer breaks off after so many bytes of it, every time; or hangs there until it is closed."""

    def __init__(self, inner: ImageReader, layer: Digest, size: int, *, hang: bool = False) -> None:
        super().__init__(inner)
        self.layer, self.left, self.hang = layer, size, hang
        self.hanging = threading.Event()

    @contextmanager
    def blob(self, descriptor: Descriptor, wanted: ByteRange | None = None) -> Iterator[BlobStream]:
        with self.inner.blob(descriptor, wanted) as stream:
            yield _Breaking(self, stream) if descriptor.digest == self.layer else stream


class _Breaking:
    def __init__(self, fault: BreaksAfter, stream: BlobStream) -> None:
        self.fault, self.stream = fault, stream
        self.closed = threading.Event()

    def readinto(self, buffer: memoryview, /) -> int:
        if self.fault.left <= 0:
            if self.fault.hang:
                self.fault.hanging.set()
                self.closed.wait()
            raise Unreachable("connection lost")
        count = self.stream.readinto(buffer[: self.fault.left])
        self.fault.left -= count
        return count

    def close(self) -> None:
        self.closed.set()
        self.stream.close()


class Away:
    """A registry that doesn't answer."""

    def resolve(self, name: str) -> Descriptor:
        raise Unreachable("no route to host")

    def manifest(self, descriptor: Descriptor) -> bytes:
        raise Unreachable("no route to host")

    @contextmanager
    def blob(self, descriptor: Descriptor, wanted: ByteRange | None = None) -> Iterator[BlobStream]:
        raise Unreachable("no route to host")
        yield

    def tags(self) -> list[str]:
        raise Unreachable("no route to host")


class Lying(Wrapped):
    """A source whose bytes have the right length and are wrong."""

    @contextmanager
    def blob(self, descriptor: Descriptor, wanted: ByteRange | None = None) -> Iterator[BlobStream]:
        with self.inner.blob(descriptor, wanted) as stream:
            yield _Flipped(stream) if wanted is not None else stream


class _Flipped:
    def __init__(self, stream: BlobStream) -> None:
        self.stream = stream

    def readinto(self, buffer: memoryview, /) -> int:
        count = self.stream.readinto(buffer)
        for position in range(0, count, 1000):
            buffer[position] ^= 1
        return count

    def close(self) -> None:
        self.stream.close()


class Truncating(Wrapped):
    """A source that ends each range halfway, as if that were all."""

    @contextmanager
    def blob(self, descriptor: Descriptor, wanted: ByteRange | None = None) -> Iterator[BlobStream]:
        if wanted is not None and len(wanted) > 1:
            wanted = ByteRange(wanted.start, wanted.start + len(wanted) // 2)
        with self.inner.blob(descriptor, wanted) as stream:
            yield stream


class Stalling(Wrapped):
    """A source that sends a little of each range and then nothing, until it is closed."""

    @contextmanager
    def blob(self, descriptor: Descriptor, wanted: ByteRange | None = None) -> Iterator[BlobStream]:
        with self.inner.blob(descriptor, wanted) as stream:
            yield _Stalled(stream) if wanted is not None else stream


class _Stalled:
    def __init__(self, stream: BlobStream) -> None:
        self.stream, self.closed, self.sent = stream, threading.Event(), False

    def readinto(self, buffer: memoryview, /) -> int:
        if self.sent:
            self.closed.wait()
            raise Unreachable("closed")
        self.sent = True
        return self.stream.readinto(buffer[:100])

    def close(self) -> None:
        self.closed.set()


class Slow(Wrapped):
    """A source that sends a little at a time, `pause` seconds apart, and never stops.

    `clock`: what moves on by `pause` with each read, for an engine whose time passes only here.
    """

    def __init__(self, inner: ImageReader, pause: float, clock: list[float] | None = None) -> None:
        super().__init__(inner)
        self.pause, self.clock = pause, clock or [0.0]

    @contextmanager
    def blob(self, descriptor: Descriptor, wanted: ByteRange | None = None) -> Iterator[BlobStream]:
        with self.inner.blob(descriptor, wanted) as stream:
            yield _Trickling(self, stream) if wanted is not None else stream


class _Trickling:
    def __init__(self, fault: Slow, stream: BlobStream) -> None:
        self.fault, self.stream, self.closed = fault, stream, threading.Event()

    def readinto(self, buffer: memoryview, /) -> int:
        if self.closed.wait(self.fault.pause):
            raise Unreachable("closed")
        self.fault.clock[0] += self.fault.pause
        return self.stream.readinto(buffer[:1000])

    def close(self) -> None:
        self.closed.set()


class RateLimiting(Wrapped):
    """A source that answers the first requests for ranges with 429."""

    def __init__(self, inner: ImageReader, times: int, retry_after: float | None = 0.01) -> None:
        super().__init__(inner)
        self.left, self.retry_after, self.lock = times, retry_after, threading.Lock()

    @contextmanager
    def blob(self, descriptor: Descriptor, wanted: ByteRange | None = None) -> Iterator[BlobStream]:
        with self.lock:
            self.left -= 1
            refuse = wanted is not None and self.left >= 0
        if refuse:
            raise RateLimited("slow down", retry_after=self.retry_after)
        with self.inner.blob(descriptor, wanted) as stream:
            yield stream


class Empty(Wrapped):
    """A mirror that hasn't got the layers."""

    @contextmanager
    def blob(self, descriptor: Descriptor, wanted: ByteRange | None = None) -> Iterator[BlobStream]:
        if wanted is not None:
            raise NotFound(f"no blob {descriptor.digest}")
        with self.inner.blob(descriptor, wanted) as stream:
            yield stream


class Refusing(Wrapped):
    """A source whose credentials don't cover the layers."""

    @contextmanager
    def blob(self, descriptor: Descriptor, wanted: ByteRange | None = None) -> Iterator[BlobStream]:
        if wanted is not None:
            raise AccessDenied("denied")
        with self.inner.blob(descriptor, wanted) as stream:
            yield stream


class Gate(Wrapped):
    """A source that waits at its first range until the test opens it; a test that failed before that doesn't hang."""

    def __init__(self, inner: ImageReader) -> None:
        super().__init__(inner)
        self.reached, self.opened = threading.Event(), threading.Event()

    @contextmanager
    def blob(self, descriptor: Descriptor, wanted: ByteRange | None = None) -> Iterator[BlobStream]:
        if wanted is not None:
            self.reached.set()
            try:
                wait_until(self.opened.is_set, what="opened gate")
            except TimeoutError as error:
                raise Unreachable(str(error)) from error
        with self.inner.blob(descriptor, wanted) as stream:
            yield stream
