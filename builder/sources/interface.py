"""The interface of a model source: it lists a checkpoint's files and fetches them one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from modelimage.digest import Digest

Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True, order=True)
class SourceFile:
    """A file at the source: its relative POSIX path, size in bytes, and sha256 according to the source, if known."""

    path: str
    size: int
    claimed: Digest | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """A source's files, sorted by path, and the paths it left out with the reason.

    `origin`: what the record states of where they come from, beside uri and revision; nothing about this machine.
    """

    files: tuple[SourceFile, ...]
    ignored: Mapping[str, str] = field(default_factory=dict)
    origin: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file that can be streamed: `identity` pins its bytes, `read(start)` yields them from there to the end.

    A read resumes by itself after a broken connection, and ends its connection when it is closed.
    """

    identity: str
    read: Callable[[int], Iterator[bytes]]


class ModelSource(Protocol):
    """One revision of one checkpoint. `fetch` and `remote` are safe for concurrent use by several threads."""

    @property
    def name(self) -> str:
        """The source as the user named it, for messages."""

    @property
    def uri(self) -> str:
        """The origin as written to the record: nothing about this machine."""

    @property
    def revision(self) -> str:
        """The resolved commit; empty if the source has none."""

    @property
    def is_local(self) -> bool:
        """Whether the files are already on this machine, so that fetching transfers nothing."""

    def list(self) -> Listing:
        """List the files. Raises NotFound, AccessDenied, Unreachable, InvalidCheckpoint."""

    def fetch(self, file: SourceFile, advance: Advance) -> Path:
        """Fetch a file to a local path that stays valid for the build. `advance` gets the bytes transferred.

        Files fetched earlier are not fetched again.
        Raises as `list`, and NoSpace and NotWritable.
        """

    def remote(self, file: SourceFile) -> RemoteFile | None:
        """A handle to stream a file without storing it; None if that isn't possible, or if the file is local."""
