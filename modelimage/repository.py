"""Interfaces of a repository of images, such as a registry repository or an OCI layout directory.

Separate from the implementations. All reads are verified against the digest unless the method's docstring says
otherwise; a tag becomes visible only after everything that its manifest refers to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.ranges import ByteRange

# Manifests are read into memory, so untrusted ones are bounded: by what registries must take (distribution-spec,
# "Pushing Manifests").
MAX_MANIFEST_BYTES = 4 << 20


class BlobStream(Protocol):
    """A stream of bytes. Callers verify them: a stream of a range can't be verified by digest."""

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill part of the buffer; 0 only after the last promised byte. Raises Unreachable if the stream ends early."""

    def close(self) -> None:
        """Free the connection. May be called from another thread, which ends a pending `readinto`."""


class ImageReader(Protocol):
    """Reads one repository. Safe for concurrent use by several threads."""

    def resolve(self, name: str) -> Descriptor:
        """The manifest with a tag or digest. Raises NotFound, AccessDenied, Unreachable."""

    def manifest(self, descriptor: Descriptor) -> bytes:
        """A manifest's verified bytes. Raises DigestMismatch, and InvalidImage above 4 MiB."""

    def blob(
        self, descriptor: Descriptor, wanted: ByteRange | None = None
    ) -> AbstractContextManager[BlobStream]:
        """A blob or a range of it, not verified. Raises NotFound, AccessDenied, Unreachable, RemoteRefused."""

    def tags(self) -> list[str]:
        """All tags, sorted."""


class StopRequested(Exception):
    """Raised by a progress callback to stop a transfer.

    The transfer ends immediately, or after the current chunk of a chunked upload, which another process can resume.
    """


@dataclass(frozen=True, slots=True)
class BlobContent:
    """A blob's descriptor and content: `read(offset)` iterates over buffers from the offset to the end.

    `read` may be called again with another offset after a failure; a buffer is valid until the next one is requested.
    """

    descriptor: Descriptor
    read: Callable[[int], Iterator[memoryview | bytes]]


@dataclass(frozen=True, slots=True)
class StreamedContent:
    """A blob of `size` bytes whose digest is known only after streaming them; `read` works as in BlobContent.

    `name` identifies exactly these bytes, in other processes too. `digest` is called after the last byte, and may raise
    to discard the blob.
    """

    name: str
    size: int
    # From an offset, as an interrupted upload resumes in the middle.
    read: Callable[[int], Iterator[memoryview | bytes]]
    digest: Callable[[], Digest]


class StreamedWriter(Protocol):
    """A repository that accepts blobs before their digest is known. Safe for concurrent use by several threads."""

    def put_streamed(
        self, content: StreamedContent, progress: Callable[[int], None] | None = None
    ) -> None:
        """Store a blob under its computed digest; nothing is visible earlier. Otherwise as `put_blob`."""


class ImageWriter(Protocol):
    """Writes one repository. Safe for concurrent use by several threads."""

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Whether the repository already has the blob, so that it need not be sent."""

    def put_blob(self, content: BlobContent, progress: Callable[[int], None] | None = None) -> None:
        """Store a blob; idempotent. `progress` gets byte counts. Raises DigestMismatch and leaves nothing visible."""

    def put_manifest(self, descriptor: Descriptor, data: bytes, tag: str | None = None) -> None:
        """Store a manifest whose blobs and children already exist, and point a tag at it."""
