"""The interface of a model source: it lists a checkpoint's files and brings one at a time onto this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from modelimage.digest import Digest

Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True, order=True)
class SourceFile:
    """A file at the source: its relative POSIX path, size in bytes, and the sha256 the source says it has, if any."""

    path: str
    size: int
    claimed: Digest | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """What a source holds, sorted by path, and what its walk left out with the reason."""

    files: tuple[SourceFile, ...]
    ignored: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file that can stay where it is: `identity` pins its bytes, `read(start)` gives them from there to the end.

    A reading goes on by itself where a connection broke off, and ends its connection when it is closed.
    """

    identity: str
    read: Callable[[int], Iterator[bytes]]


class ModelSource(Protocol):
    """One revision of one checkpoint. `fetch` and `remote` are safe for use from several threads at once."""

    @property
    def uri(self) -> str:
        """What the record says of where it came from: nothing of this machine."""

    @property
    def revision(self) -> str:
        """The resolved commit; empty where the source has none."""

    @property
    def is_local(self) -> bool:
        """Whether the files are on this machine already, so that fetching moves nothing."""

    def list(self) -> Listing:
        """Raises NotFound, AccessDenied, Unreachable, InvalidCheckpoint."""

    def fetch(self, file: SourceFile, advance: Advance) -> Path:
        """A local path with the file's bytes, which stay there for the build. `advance` gets what is transferred.

        What was fetched before is not fetched again.
        Raises as `list`, and NoSpace and NotWritable.
        """

    def remote(self, file: SourceFile) -> RemoteFile | None:
        """How to read a file without keeping it here; None where that can't be, or where it is here already."""
