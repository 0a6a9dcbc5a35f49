"""The interfaces of a place that holds images: a registry's repository, an OCI layout directory.

Kept apart from the implementations. Everything read through them is checked against its digest unless the
method says otherwise; nothing written through them is visible under a tag before all it names is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.ranges import ByteRange

MAX_MANIFEST_BYTES = 16 << 20


class BlobStream(Protocol):
    """Bytes on their way. A reader checks them itself: a stream of a range can't be checked by digest."""

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill a part of the buffer; 0 only after the last byte promised. Raises Unreachable when it breaks off."""

    def close(self) -> None:
        """Free the connection; from another thread too, which ends a pending `readinto`."""


class ImageReader(Protocol):
    """Reads one repository. Safe for use from several threads at once."""

    def resolve(self, name: str) -> Descriptor:
        """The manifest that a tag or digest names. Raises NotFound, AccessDenied, Unreachable."""

    def manifest(self, descriptor: Descriptor) -> bytes:
        """A manifest's bytes, checked: raises DigestMismatch, InvalidImage above 16 MiB."""

    def blob(
        self, descriptor: Descriptor, wanted: ByteRange | None = None
    ) -> AbstractContextManager[BlobStream]:
        """A blob, or a range of it, unchecked. Raises NotFound, AccessDenied, Unreachable, RemoteRefused."""

    def tags(self) -> list[str]:
        """All tags, sorted."""


class StopRequested(Exception):
    """Raised by a progress callback to end a transfer.

    It ends at once, or where it goes to a registry in chunks, after the chunk under way: another process goes on there.
    """


@dataclass(frozen=True, slots=True)
class BlobContent:
    """Where a blob's bytes come from: `read(offset)` iterates over buffers from there to the end.

    It can be asked again from another offset after a failure; a buffer is valid until the next one is asked for.
    """

    descriptor: Descriptor
    read: Callable[[int], Iterator[memoryview | bytes]]


@dataclass(frozen=True, slots=True)
class PassingContent:
    """A blob whose digest is known only once its bytes have passed: `size` of them, from `read`, as a BlobContent's.

    `name` stands for these very bytes, in other processes too. `digest` is asked for after the last byte, and may raise
    to have the blob dropped.
    """

    name: str
    size: int
    read: Callable[[int], Iterator[memoryview | bytes]]
    digest: Callable[[], Digest]


class PassingWriter(Protocol):
    """A place that takes blobs before their digest is known. Safe for use from several threads at once."""

    def put_passing(
        self, content: PassingContent, progress: Callable[[int], None] | None = None
    ) -> None:
        """Store a blob under the digest that it turns out to have; nothing is visible before. As `put_blob` else."""


class ImageWriter(Protocol):
    """Writes one repository. Safe for use from several threads at once."""

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Whether the blob is there already, so that it need not be sent."""

    def put_blob(self, content: BlobContent, progress: Callable[[int], None] | None = None) -> None:
        """Store a blob; idempotent. `progress` gets byte counts. Raises DigestMismatch and leaves nothing visible."""

    def put_manifest(self, descriptor: Descriptor, data: bytes, tag: str | None = None) -> None:
        """Store a manifest whose blobs and children are there, and point a tag at it."""
