"""The Source interface: where weight files are fetched from. Implementations are one module per kind.

Bytes from a source are never trusted: the reader checks each chunk against the record and each file's sha256. So
implementations must report errors exactly, and needn't check content.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.errors import NotFound
from modelimage.ranges import ByteRange
from modelimage.recipe import Recipe
from modelimage.record import RecordFile
from modelimage.repository import BlobStream, ImageReader


class RetryLater(NotFound):
    """This source will have it soon: the request is delayed by `after` seconds, and no other source is tried for it."""

    def __init__(self, message: str, *, after: float, in_line: bool = False) -> None:
        """`in_line`: it waits for one of this node's own transfers to end, and is due as soon as one does."""
        super().__init__(message)
        self.after, self.in_line = after, in_line


class FetchUpstream(NotFound):
    """This source delegates the request to the next one. If that fails, this one may be tried again."""


class Tier(Enum):
    """The kind of source, fastest first. Its value labels metrics."""

    MEMORY = "memory"
    DISK = "disk"
    PEER = "peer"
    SHARED = "shared"
    REGISTRY = "registry"
    HUB = "hub"


@dataclass(frozen=True, slots=True)
class ChunkRange:
    """Part of a file, `range` in its bytes: one chunk, or several consecutive ones in one request.

    `index` is the number of the first chunk.
    """

    file: RecordFile
    index: int
    range: ByteRange

    def is_followed_by(self, other: ChunkRange) -> bool:
        """Whether `other` begins in the same file where this one ends."""
        return self.file is other.file and self.range.stop == other.range.start


class Identified(Protocol):
    """Anything with a digest."""

    @property
    def digest(self) -> Digest: ...


class Layered(Protocol):
    """A model's layers as sources need them: a record, or a foreign image that is being fetched."""

    @property
    def layers(self) -> Sequence[Identified]: ...

    def recipe(self, layer: Digest) -> Recipe | None:
        """The positions of a layer's files; None if unknown."""


class ResolvedSource(Protocol):
    """A model image or a foreign image, resolved to one model."""

    @property
    def root(self) -> Descriptor: ...
    @property
    def manifest(self) -> Descriptor: ...
    @property
    def record(self) -> Layered: ...
    @property
    def layers(self) -> Sequence[Descriptor]: ...
    @property
    def key(self) -> Digest: ...


class Source(Protocol):
    """One source, bound to one model. Safe for concurrent use from several threads."""

    @property
    def tier(self) -> Tier:
        """The kind of source."""

    @property
    def name(self) -> str:
        """A name for people: a host, a bucket, a directory."""

    @property
    def authorizes(self) -> bool:
        """Whether its bytes come from the image's own layers, which proves that the caller may have them."""

    def open(self, pieces: Sequence[ChunkRange]) -> AbstractContextManager[BlobStream]:
        """The bytes of all pieces, concatenated: files of one layer, in the layer's order, as one stream.

        `readinto` returns 0 only after the last byte. Raises NotFound when this source doesn't have them (another may),
        RetryLater, FetchUpstream, AccessDenied, Unreachable, RateLimited, RemoteRefused. Closing the stream from
        another thread ends a pending read.
        """


# The sources of a resolved model, fastest first: its image read with the caller's credentials, from one repository.
SourcesOf = Callable[[ResolvedSource, ImageReader, str], Sequence[Source]]
