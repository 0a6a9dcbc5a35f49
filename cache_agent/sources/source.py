"""The Source role: a place that weight files can be fetched from. The interface only; one module per kind beside it.

Bytes from a source are never trusted: whoever reads them checks each chunk against the record and each file's
sha256. So a source owes honesty about errors, not about content.
"""

from __future__ import annotations

from collections.abc import Sequence
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
from modelimage.repository import BlobStream


class RetryLater(NotFound):
    """This place will have it soon: the span waits `after` seconds, others come first, no other place is asked."""

    def __init__(self, message: str, *, after: float, in_line: bool = False) -> None:
        """`in_line`: it waits for one of this node's own transfers to end, which may be sooner."""
        super().__init__(message)
        self.after, self.in_line = after, in_line


class FetchUpstream(NotFound):
    """This place leaves it to the next. Should that one fail, it is of use to ask here again."""


class Tier(Enum):
    """What kind of place bytes came from, fastest first. The value labels metrics."""

    MEMORY = "memory"
    DISK = "disk"
    PEER = "peer"
    SHARED = "shared"
    REGISTRY = "registry"
    HUB = "hub"


@dataclass(frozen=True, slots=True)
class ChunkRange:
    """Part of a file, `range` in its bytes: one chunk, or several in a row that are asked for at once.

    `index` is the number of the first.
    """

    file: RecordFile
    index: int
    range: ByteRange

    def goes_on_with(self, other: ChunkRange) -> bool:
        """Whether `other` begins in the same file where this one ends."""
        return self.file is other.file and self.range.stop == other.range.start


class Identified(Protocol):
    """What has a digest."""

    @property
    def digest(self) -> Digest: ...


class Layered(Protocol):
    """What a source must know of a model's layers: a record does, and so does a foreign image that is on its way."""

    @property
    def layers(self) -> Sequence[Identified]: ...

    def recipe(self, layer: Digest) -> Recipe | None:
        """Where a layer's files lie; None where that can't be told."""


class Resolved(Protocol):
    """An image of ours or of others, resolved to one model."""

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
    """One place, bound to one model. Safe for use from several threads at once."""

    @property
    def tier(self) -> Tier:
        """What kind of place it is."""

    @property
    def name(self) -> str:
        """Which place it is, for people: a host, a bucket, a directory."""

    @property
    def proves(self) -> bool:
        """Whether its bytes come out of the image's own layers, so that having them shows the caller may have them."""

    def open(self, pieces: Sequence[ChunkRange]) -> AbstractContextManager[BlobStream]:
        """The bytes of all pieces back to back: files of one layer, in the layer's order, as one stream.

        `readinto` returns 0 only after the last byte. Raises NotFound when this place hasn't got them (another may),
        NotYet, YourTurn, AccessDenied, Unreachable, RateLimited, RemoteRefused. Closing the stream from another thread
        ends a pending read.
        """
