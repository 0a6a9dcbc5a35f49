"""Persistent state of unfinished uploads, so that another process can resume them.

A session's location is useful only to a client that may write to the repository, but it is as private as a token, so
only the owner can read the files. One process at a time holds an upload's state.
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
    """The state of one upload."""

    def recall(self) -> Session | None:
        """The last saved session, if any."""

    def keep(self, session: Session) -> None:
        """Save the latest session."""

    def forget(self) -> None:
        """Delete the state: the upload has ended."""


class UploadMemory(Protocol):
    """Stores the state of uploads."""

    def note(self, target: str) -> AbstractContextManager[UploadNote]:
        """The state of one upload, by the URL of the blob it creates. Has one holder at a time."""


class NullUploadState:
    """An UploadNote that stores nothing."""

    def recall(self) -> Session | None:
        return None

    def keep(self, session: Session) -> None:
        pass

    def forget(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class NoMemory:
    """An UploadMemory that stores nothing."""

    @contextlib.contextmanager
    def note(self, target: str) -> Iterator[UploadNote]:
        yield NullUploadState()


@dataclass(frozen=True, slots=True)
class DirectoryMemory:
    """Stores upload state in small files of a directory, created when first needed. Raises NoSpace, NotWritable."""

    directory: Path

    @contextlib.contextmanager
    def note(self, target: str) -> Iterator[UploadNote]:
        """While another process has the same upload, yields a NullUploadState: two must not write to one session."""
        path = self.directory / f"{hashlib.sha256(target.encode()).hexdigest()[:32]}.json"
        with durable.writing(path):
            durable.make_directories(self.directory)
            # Created with its final mode, so that the session's location is never readable by others.
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # Not waited for: the other upload may take hours, and storing a blob twice is harmless.
            os.close(descriptor)
            yield NullUploadState()
            return
        try:
            yield FileNote(path, descriptor)
        finally:
            os.close(descriptor)


class FileNote:
    """An UploadNote in a locked file. If a crash left it malformed, `recall` returns None."""

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
            # Truncated last: a crash in between leaves invalid JSON, which `recall` ignores.
            os.pwrite(self._descriptor, data, 0)
            os.ftruncate(self._descriptor, len(data))

    def forget(self) -> None:
        with durable.writing(self._path):
            self._path.unlink(missing_ok=True)
