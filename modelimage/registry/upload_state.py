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
from dataclasses import asdict, dataclass
from pathlib import Path

from modelimage import durable
from modelimage.bounds import MALFORMED
from modelimage.registry.upload import Session


class UploadNote:
    """The state of one upload: a small locked file, or nothing at all if there is no file."""

    def __init__(self, path: Path | None = None, descriptor: int = -1) -> None:
        self._path = path
        self._descriptor = descriptor

    def recall(self) -> Session | None:
        """The last saved session, if any."""
        if self._path is None:
            return None
        with durable.reading(self._path):
            text = os.pread(self._descriptor, 1 << 16, 0)
        try:
            document = json.loads(text)
            return Session(
                str(document["location"]), int(document["offset"]), int(document["minimum"])
            )
        # A crash in `keep` may leave half a document: the upload then starts again, which is only slower.
        except MALFORMED:
            return None

    def keep(self, session: Session) -> None:
        """Save the latest session."""
        if self._path is None:
            return
        data = json.dumps(asdict(session)).encode()
        with durable.writing(self._path):
            # Truncated last: a crash in between leaves invalid JSON, which `recall` ignores.
            os.pwrite(self._descriptor, data, 0)
            os.ftruncate(self._descriptor, len(data))

    def forget(self) -> None:
        """Delete the state: the upload has ended."""
        if self._path is not None:
            with durable.writing(self._path):
                # Still locked: another process that opens it now gets no session that has ended.
                self._path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class UploadStates:
    """The states of uploads, in files of a directory that is created when first needed; None stores nothing."""

    directory: Path | None = None

    @contextlib.contextmanager
    def note(self, target: str) -> Iterator[UploadNote]:
        """The state of one upload, by the URL of the blob that it creates. Raises NoSpace, NotWritable.

        While another process has the same upload, the note stores nothing: two must not write to one session.
        """
        if self.directory is None:
            yield UploadNote()
            return
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
            yield UploadNote()
            return
        try:
            yield UploadNote(path, descriptor)
        finally:
            os.close(descriptor)
