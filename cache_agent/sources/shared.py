"""The shared role: one place for a whole cluster that holds weight files by sha256, read by all, written back once.

`SharedPlace` is the interface, `SharedSource` reads any of them as a source, `populate_shared` fills one. Files are named
by digest, not by image, so what comes from here proves nothing about who may read it: see `fetch.reuse`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cache_agent.sources.source import ChunkRange, Tier
from cache_agent.sources.streams import chained
from modelimage.digest import Digest
from modelimage.errors import DigestMismatch, NotFound
from modelimage.ranges import ByteRange
from modelimage.repository import BlobStream

WRITE_BUFFER = 8 << 20


class SharedPlace(Protocol):
    """Holds files by sha256. Safe for several threads and several nodes at once.

    All methods raise AccessDenied, Unreachable, RemoteRefused, NoSpace.
    """

    @property
    def name(self) -> str:
        """Which place it is, for people."""

    def open(self, digest: Digest, wanted: ByteRange) -> AbstractContextManager[BlobStream]:
        """A range of a file. Raises NotFound."""

    def has(self, digest: Digest, size: int) -> bool:
        """Whether the whole file is there."""

    def claim(self, digest: Digest) -> bool:
        """Whether this node is to write the file: true for one node of a cluster, until the claim grows old."""

    def put(self, digest: Digest, size: int, data: Iterator[memoryview]) -> None:
        """Store a file; visible only whole. What `data` raises leaves nothing visible."""


@dataclass(frozen=True)
class SharedSource:
    """Any shared place as a source."""

    place: SharedPlace
    tier: Tier = Tier.SHARED
    proves: bool = False

    @property
    def name(self) -> str:
        return self.place.name

    def open(self, pieces: Sequence[ChunkRange]) -> AbstractContextManager[BlobStream]:
        """See `Source.open`."""
        return chained(pieces, lambda piece: self.place.open(piece.file.digest, piece.range))


def populate_shared(
    place: SharedPlace, digest: Digest, path: Path, pause: Callable[[int], None]
) -> bool:
    """Copy a verified file to the shared place, unless it is there or another node is at it. True when it was copied.

    The bytes are hashed again on their way out. Raises DigestMismatch when they aren't what their name says.
    """
    size = path.stat().st_size
    if place.has(digest, size) or not place.claim(digest):
        return False
    place.put(digest, size, _verified(digest, path, pause))
    return True


def _verified(digest: Digest, path: Path, pause: Callable[[int], None]) -> Iterator[memoryview]:
    """The file's buffers; raises after the last one if they weren't right, so that nothing becomes visible."""
    hashed = hashlib.sha256()
    buffer = memoryview(bytearray(WRITE_BUFFER))
    with path.open("rb", buffering=0) as file:
        held: bytes | None = None
        while count := file.readinto(buffer):
            hashed.update(buffer[:count])
            if held is not None:
                yield memoryview(held)
            held = bytes(buffer[:count])
            pause(count)
    if hashed.hexdigest() != digest.hex:
        raise DigestMismatch(
            f"{path} isn't what its name says; it isn't written back",
            hint="Run `weightyard check --repair`.",
        )
    if held is not None:
        yield memoryview(held)


def missing(name: str, digest: Digest) -> NotFound:
    """The error of a place that hasn't got a file."""
    return NotFound(f"{name} has no file {digest.short}")
