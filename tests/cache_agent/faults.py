"""Faults of sources and disks, each a named class."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.errors import Unreachable
from modelimage.ranges import ByteRange
from modelimage.repository import BlobStream, ImageReader


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
                self.closed.wait(60)
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
