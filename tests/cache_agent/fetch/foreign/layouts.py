"""Layouts that count what they give, and that give a wrong byte."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.layout import Layout
from modelimage.ranges import ByteRange
from modelimage.repository import BlobStream
from tests.cache_agent.images import BytesStream


@dataclass
class Counting:
    """A layout that counts the bytes of blobs that it gave."""

    layout: Layout
    given: dict[Digest, int] = field(default_factory=dict)

    def resolve(self, name: str) -> Descriptor:
        return self.layout.resolve(name)

    def manifest(self, descriptor: Descriptor) -> bytes:
        return self.layout.manifest(descriptor)

    def tags(self) -> list[str]:
        return self.layout.tags()

    @contextmanager
    def blob(self, descriptor: Descriptor, wanted: ByteRange | None = None) -> Iterator[BlobStream]:
        size = len(wanted) if wanted else descriptor.size
        self.given[descriptor.digest] = self.given.get(descriptor.digest, 0) + size
        with self.layout.blob(descriptor, wanted) as stream:
            yield stream


@dataclass
class Tampering(Counting):
    """Flips a bit of one blob, the first `times` times that it is asked for from its beginning."""

    victim: Digest | None = None
    times: int = 1 << 30

    @contextmanager
    def blob(self, descriptor: Descriptor, wanted: ByteRange | None = None) -> Iterator[BlobStream]:
        whole = ByteRange(0, descriptor.size)
        with super().blob(descriptor, wanted) as stream:
            if descriptor.digest != self.victim or len(wanted or whole) < 40_000 or self.times <= 0:
                yield stream
                return
            self.times -= 1
            data = bytearray(len(wanted or whole))
            view, filled = memoryview(data), 0
            while filled < len(data) and (count := stream.readinto(view[filled:])):
                filled += count
            data[len(data) // 2] ^= 4
            yield BytesStream(bytes(data))
