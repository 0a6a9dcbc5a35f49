"""The shared tier: a store of weight files by sha256 that all nodes of a cluster read and fill once.

`SharedStore` is the interface, `SharedSource` adapts it to a source, `populate_shared` fills it. Files are named by
digest, not by image, so their bytes prove nothing about who may read them: see `fetch.reuse_check`.
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
from cache_agent.store.disk import plain_size, reading
from modelimage.digest import Digest
from modelimage.errors import DigestMismatch, NotFound
from modelimage.ranges import ByteRange
from modelimage.repository import BlobStream

WRITE_BUFFER = 8 << 20


class SharedStore(Protocol):
    """A shared store: files by sha256. Safe for concurrent use by several threads and several nodes.

    All methods raise AccessDenied, Unreachable, RemoteRefused, NoSpace.
    """

    @property
    def name(self) -> str:
        """A name for people: a bucket, a directory."""

    def open(self, digest: Digest, wanted: ByteRange) -> AbstractContextManager[BlobStream]:
        """A byte range of a file. Raises NotFound."""

    def has(self, digest: Digest, size: int) -> bool:
        """Whether the complete file exists."""

    def claim(self, digest: Digest) -> bool:
        """Claim writing a file: True for one node of the cluster, until the claim expires."""

    def put(self, digest: Digest, size: int, data: Iterator[memoryview]) -> None:
        """Store a file and end the claim. It becomes visible only when complete; never if `data` raises."""


@dataclass(frozen=True)
class SharedSource:
    """A shared store as a source."""

    place: SharedStore
    tier: Tier = Tier.SHARED
    authorizes: bool = False

    @property
    def name(self) -> str:
        return self.place.name

    def open(self, pieces: Sequence[ChunkRange]) -> AbstractContextManager[BlobStream]:
        """See `Source.open`."""
        return chained(pieces, lambda piece: self.place.open(piece.file.digest, piece.range))


def populate_shared(
    place: SharedStore, digest: Digest, path: Path, pause: Callable[[int], None]
) -> bool:
    """Copy a file to the shared store, unless it is there or another node is writing it. Returns whether it copied.

    Hashes the bytes again while reading. Raises DigestMismatch if they don't match the file's name.
    """
    # First `has`, which changes nothing, then the claim: most nodes find the file there.
    size = plain_size(path)
    # Removed since it was listed.
    if size is None:
        return False
    if place.has(digest, size) or not place.claim(digest):
        return False
    place.put(digest, size, _verified(digest, path, pause))
    return True


def _verified(digest: Digest, path: Path, pause: Callable[[int], None]) -> Iterator[memoryview]:
    """The file's buffers. Raises before the last one if their hash is wrong, so `put` never completes."""
    hashed = hashlib.sha256()
    buffer = memoryview(bytearray(WRITE_BUFFER))
    with reading(path), path.open("rb", buffering=0) as file:
        # One buffer behind: the last one is handed out only after the hash of the whole file was checked.
        held: bytes | None = None
        while count := file.readinto(buffer):
            hashed.update(buffer[:count])
            if held is not None:
                yield memoryview(held)
            held = bytes(buffer[:count])
            pause(count)
    if hashed.hexdigest() != digest.hex:
        raise DigestMismatch(
            f"{path} doesn't match its digest, so it isn't copied to the shared store",
            hint="Run `weightyard check --repair`.",
        )
    if held is not None:
        yield memoryview(held)


def missing(name: str, digest: Digest) -> NotFound:
    """The error of a shared store that doesn't have a file."""
    return NotFound(f"{name} has no file {digest.short}")
