"""Gets a blob into a repository: mounted, resumed, in chunks or in one request, as the registry supports.

Only the latest Location of a session is valid, so it is saved after each chunk; after any failure the registry is
queried for its offset. If a registry refuses the first chunk, this blob and all later ones are sent in one request.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from modelimage.digest import Digest
from modelimage.errors import AccessDenied, DigestMismatch, NotFound, RemoteRefused, Unreachable
from modelimage.registry.profiles import RegistryProfile, UploadStyle
from modelimage.registry.retry import Backoff
from modelimage.registry.upload import ChunkRefused, Outgoing, Session, Tally, Uploader
from modelimage.registry.upload_state import UploadNote, UploadStates
from modelimage.repository import BlobContent, StreamedContent

# Per blob: a registry that has lost this many sessions won't accept it.
_MAX_RESTARTS: Final = 3
# The aim for the duration of a chunk, and so for the work that a killed process loses.
_CHUNK_SECONDS: Final = 2.0
_LEAST_CHUNK: Final = 4 << 20
# Used before the speed is known.
_FIRST_CHUNK: Final = 16 << 20


def chunk_stop(session: Session, size: int, chunk: int) -> int:
    """The end of the chunk that starts at the session's offset. Pure.

    No chunk except the last is below the registry's minimum; a last one that would be is joined to the one before.
    """
    length = max(chunk, session.minimum)
    stop = session.offset + length
    return size if size - stop < session.minimum or stop >= size else stop


def most_chunk(size: int, allowed: int, *, killed: bool) -> int:
    """The largest chunk size for a blob, so that a killed process loses at most a few percent of the blob. Pure.

    Small chunks cost the registry time, so the smallest are used only when resuming after a process was `killed`.
    """
    return min(allowed, max(size // (128 if killed else 64), _LEAST_CHUNK))


def chunk_bytes(sent: int, seconds: float, most: int) -> int:
    """The size of the next chunk, after one of `sent` bytes that took `seconds`: about two seconds' worth. Pure.

    A killed process loses the current chunk, so slow connections use small chunks; fast ones use up to `most`.
    """
    fitting = int(sent * _CHUNK_SECONDS / max(seconds, 1e-6))
    return max(min(most, _LEAST_CHUNK), min(most, fitting))


class BlobSender:
    """Sends blobs to one repository. Safe for threads."""

    def __init__(
        self,
        uploader: Uploader,
        profile: RegistryProfile,
        *,
        backoff: Backoff,
        uploads: UploadStates,
        mount_from: Sequence[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._uploader = uploader
        self._profile = profile
        self._backoff = backoff
        self._uploads = uploads
        self._mount_from = tuple(mount_from)
        self._clock = clock
        # Set by any thread once the registry has refused chunks; never reset.
        self._chunks_refused = False

    def send(
        self,
        content: BlobContent,
        target: str,
        is_there: Callable[[], bool],
        progress: Callable[[int], None] | None,
    ) -> None:
        """Send a blob that doesn't exist yet. `target` is its URL; `is_there` checks again for it after a failure."""
        digest = content.descriptor.digest
        with self._uploads.note(target) as note:
            session = self._resumed(note) or self._opened(digest)
            self._send(Outgoing.from_content(content), session, note, is_there, Tally(progress))

    def send_streamed(
        self, content: StreamedContent, target: str, progress: Callable[[int], None] | None
    ) -> None:
        """Send a blob whose digest is known only at its end. `target` identifies these bytes in this repository."""
        with self._uploads.note(target) as note:
            session = self._resumed(note) or self._uploader.begin()
            self._send(
                Outgoing.from_streamed(content), session, note, lambda: False, Tally(progress)
            )

    def _send(
        self,
        content: Outgoing,
        session: Session | None,
        note: UploadNote,
        is_there: Callable[[], bool],
        tally: Tally,
    ) -> None:
        failures = restarts = 0
        # An offset at the start was left by an earlier process that stopped, which may happen again.
        killed = session is not None and session.offset > 0
        while session is not None:
            transfer = BlobUpload(self._uploader, session, note, tally, self._clock)
            chunk = self._chunk_bytes(content, killed=killed)
            try:
                transfer.run(content, chunk)
                break
            except (ChunkRefused, DigestMismatch) as error:
                restarts += 1
                # Chunks refused even in a single request won't succeed later; a lost session may.
                hopeless = chunk is None and isinstance(error, ChunkRefused) and not error.lost
                if (
                    hopeless
                    or restarts > _MAX_RESTARTS
                    or not self._may_restart(error, session, transfer)
                ):
                    note.forget()
                    raise
                session = self._uploader.begin()
            except Unreachable:
                # Progress resets the count: a long upload survives many interruptions, a dead registry only a few.
                failures = 1 if transfer.session.offset > session.offset else failures + 1
                if not self._backoff.wait(failures):
                    raise
                # The registry may have stored the blob although its final response was lost.
                if is_there():
                    break
                session = self._uploader.ask(transfer.session)
                if session is None:
                    # The session is lost: a connection that always breaks early must not send the same bytes forever.
                    restarts += 1
                    if restarts > _MAX_RESTARTS:
                        raise
                    session = self._uploader.begin()
        # Bytes that the registry had before this upload were not counted while sending.
        tally.reach(content.size)
        note.forget()

    def _may_restart(
        self, error: ChunkRefused | DigestMismatch, began: Session, transfer: BlobUpload
    ) -> bool:
        """Whether a new session may succeed where this one, which began as `began`, has failed."""
        if isinstance(error, DigestMismatch):
            # Bytes that were there before may have been wrong; those sent in this session were not.
            return began.offset > 0
        if transfer.session.offset == 0:
            self._chunks_refused = True
        return True

    def _chunk_bytes(self, content: Outgoing, *, killed: bool) -> int | None:
        """The largest chunk size; None to send all in one request."""
        most = most_chunk(content.size, self._profile.chunk_bytes, killed=killed)
        chunked = self._profile.style is UploadStyle.CHUNKED and not self._chunks_refused
        # Below one chunk, a single request saves round trips.
        return most if chunked and content.size > min(most, _FIRST_CHUNK) else None

    def _resumed(self, note: UploadNote) -> Session | None:
        noted = note.recall()
        if noted is None:
            return None
        try:
            return self._uploader.ask(noted)
        except (RemoteRefused, NotFound, AccessDenied):
            # A saved session may have expired or be refused now; that must not prevent a new upload.
            return None

    def _opened(self, digest: Digest) -> Session | None:
        """A new session, or None if the blob could be mounted from another repository."""
        session: Session | None = None
        for source in self._mount_from:
            try:
                session = self._uploader.mount(digest, source)
            except (AccessDenied, NotFound, RemoteRefused):
                # The source may be private or gone: the blob is sent instead.
                continue
            if session is None:
                return None
        # A failed mount opens a session, which then serves the upload.
        return session or self._uploader.begin()


class BlobUpload:
    """One attempt to send the rest of a blob; `session` is always the latest one, even after a failure."""

    def __init__(
        self,
        uploader: Uploader,
        session: Session,
        note: UploadNote,
        tally: Tally,
        clock: Callable[[], float],
    ) -> None:
        self._uploader = uploader
        self._note = note
        self._tally = tally
        self._clock = clock
        self.session = session

    def run(self, content: Outgoing, most: int | None) -> None:
        """Send all missing bytes: in chunks of at most `most` bytes or, if None, in one request.

        Raises StopRequested between two chunks if the progress callback has raised it.
        """
        # Saved before the first byte: a process killed during the first chunk can then still resume.
        self._note.keep(self.session)
        # A small blob is treated as one chunk.
        self._tally.deferring = most is not None or content.size <= _FIRST_CHUNK
        if most is not None:
            self._send_chunks(content, most)
        elif content.streamed and self.session.offset < content.size:
            # The digest of a streamed blob must be known in the final request's URL, so its bytes go in a PATCH before.
            self._append(content, content.size, ranged=False)
        self._uploader.finish(self.session, content, self._tally)

    def _send_chunks(self, content: Outgoing, most: int) -> None:
        size = min(most, _FIRST_CHUNK)
        while (start := self.session.offset) < content.size:
            began = self._clock()
            self._append(content, chunk_stop(self.session, content.size, size), ranged=True)
            size = chunk_bytes(self.session.offset - start, self._clock() - began, most)
            self._tally.check()

    def _append(self, content: Outgoing, stop: int, *, ranged: bool) -> None:
        self.session = self._uploader.append(
            self.session, content, stop, self._tally, ranged=ranged
        )
        self._note.keep(self.session)
