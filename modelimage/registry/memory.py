"""What is remembered of half-sent uploads, so that another process goes on with them.

A session's location is only good for the process that may write to that repository, but is no less private than a
token, so the files are their owner's alone. One process at a time holds an upload's memory.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from modelimage import durable
from modelimage.registry.upload import Session


class UploadNote(Protocol):
    """The memory of one upload."""

    def recall(self) -> Session | None:
        """The session last kept, if any."""

    def keep(self, session: Session) -> None:
        """Remember the newest session."""

    def forget(self) -> None:
        """The upload is over."""


class UploadMemory(Protocol):
    """Where notes are kept."""

    def note(self, target: str) -> AbstractContextManager[UploadNote]:
        """The note of one upload, by the URL of the blob it makes. Held by one holder at a time."""


class NullUploadState:
    """Remembers nothing."""

    def recall(self) -> Session | None:
        return None

    def keep(self, session: Session) -> None:
        pass

    def forget(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class NoMemory:
    """An UploadMemory for those who want none."""

    @contextlib.contextmanager
    def note(self, target: str) -> Iterator[UploadNote]:
        yield NullUploadState()


@dataclass(frozen=True, slots=True)
class DirectoryMemory:
    """Notes as small files of a directory, made when first needed. Raises NoSpace, NotWritable."""

    directory: Path

    @contextlib.contextmanager
    def note(self, target: str) -> Iterator[UploadNote]:
        """Where another process is at the same upload, a note that forgets: two must not write one session."""
        path = self.directory / f"{hashlib.sha256(target.encode()).hexdigest()[:32]}.json"
        with durable.writing(path):
            durable.make_directories(self.directory)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            yield NullUploadState()
            return
        try:
            yield FileNote(path, descriptor)
        finally:
            os.close(descriptor)


class FileNote:
    """An UploadNote in a locked file. A note that a crash left malformed recalls nothing."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor

    def recall(self) -> Session | None:
        with durable.reading(self._path):
            text = os.pread(self._descriptor, 1 << 16, 0)
        try:
            document = json.loads(text)
            return Session(
                str(document["location"]), int(document["offset"]), int(document["minimum"])
            )
        except (ValueError, TypeError, KeyError):
            return None

    def keep(self, session: Session) -> None:
        document = {
            "location": session.location,
            "offset": session.offset,
            "minimum": session.minimum,
        }
        data = json.dumps(document).encode()
        with durable.writing(self._path):
            # Shortened last: whoever dies in between leaves text that is no JSON, which recalls nothing.
            os.pwrite(self._descriptor, data, 0)
            os.ftruncate(self._descriptor, len(data))

    def forget(self) -> None:
        with durable.writing(self._path):
            self._path.unlink(missing_ok=True)
