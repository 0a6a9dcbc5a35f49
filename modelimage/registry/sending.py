"""How a blob gets into a repository: mounted, resumed, in chunks or in one request, whatever the registry takes.

Only the newest Location of a session is any good, so it is noted after each chunk; after any failure the registry is
asked how far it got. A registry that refuses the first chunk gets the blob in one request, and so do the next blobs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from modelimage.digest import Digest
from modelimage.errors import AccessDenied, DigestMismatch, NotFound, RemoteRefused, Unreachable
from modelimage.registry.memory import UploadMemory, UploadNote
from modelimage.registry.profiles import RegistryProfile, UploadStyle
from modelimage.registry.retry import Backoff
from modelimage.registry.upload import ChunkRefused, Outgoing, Session, Tally, Uploader
from modelimage.repository import BlobContent, PassingContent

_MAX_RESTARTS: Final = 3
_CHUNK_SECONDS: Final = 2.0
_LEAST_CHUNK: Final = 4 << 20
_FIRST_CHUNK: Final = 16 << 20


def chunk_stop(session: Session, size: int, chunk: int) -> int:
    """Where the chunk that begins at the session's offset ends. Pure.

    No chunk but the last is below the registry's minimum; a last one that would be is joined to the one before.
    """
    length = max(chunk, session.minimum)
    stop = session.offset + length
    return size if size - stop < session.minimum or stop >= size else stop


def most_chunk(size: int, allowed: int, *, killed: bool) -> int:
    """The most that a chunk of a blob may have, so that what kills cost stays a few percent of the blob. Pure.

    Small chunks cost the registry time, so the smallest are for who goes on after a process that was `killed`.
    """
    return min(allowed, max(size // (128 if killed else 64), _LEAST_CHUNK))


def chunk_bytes(sent: int, seconds: float, most: int) -> int:
    """How large the next chunk is to be after one of `sent` bytes that took so long: about two seconds' worth. Pure.

    What a killed process loses is the chunk under way, so a slow line has small ones; `most` is what a fast one has.
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
        memory: UploadMemory,
        mount_from: Sequence[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._uploader = uploader
        self._profile = profile
        self._backoff = backoff
        self._memory = memory
        self._mount_from = tuple(mount_from)
        self._clock = clock
        # Set by any thread once the registry showed that it takes no chunks; never taken back.
        self._chunks_refused = False

    def send(
        self,
        content: BlobContent,
        target: str,
        is_there: Callable[[], bool],
        progress: Callable[[int], None] | None,
    ) -> None:
        """Send a blob that isn't there. `target` is its URL; `is_there` asks for it again after a failure."""
        digest = content.descriptor.digest
        with self._memory.note(target) as note:
            session = self._resumed(note) or self._opened(digest)
            self._send(Outgoing.of(content), session, note, is_there, Tally(progress))

    def send_passing(
        self, content: PassingContent, target: str, progress: Callable[[int], None] | None
    ) -> None:
        """Send a blob whose digest is known only in the end. `target` stands for these bytes in this repository."""
        with self._memory.note(target) as note:
            session = self._resumed(note) or self._uploader.begin()
            self._send(Outgoing.passing(content), session, note, lambda: False, Tally(progress))

    def _send(
        self,
        content: Outgoing,
        session: Session | None,
        note: UploadNote,
        is_there: Callable[[], bool],
        tally: Tally,
    ) -> None:
        failures = restarts = 0
        killed = session is not None and session.offset > 0
        while session is not None:
            transfer = Transfer(self._uploader, session, note, tally, self._clock)
            chunk = self._chunk_bytes(content, killed=killed)
            try:
                transfer.run(content, chunk)
                break
            except (ChunkRefused, DigestMismatch) as error:
                restarts += 1
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
                failures = 1 if transfer.session.offset > session.offset else failures + 1
                if not self._backoff.wait(failures):
                    raise
                if is_there():
                    break
                session = self._uploader.ask(transfer.session)
                if session is None:
                    # Lost: a line that breaks before each end must not send the same bytes for ever.
                    restarts += 1
                    if restarts > _MAX_RESTARTS:
                        raise
                    session = self._uploader.begin()
        tally.reach(content.size)
        note.forget()

    def _may_restart(
        self, error: ChunkRefused | DigestMismatch, began: Session, transfer: Transfer
    ) -> bool:
        """Whether a new session may fare better than this one, which began at `began`."""
        if isinstance(error, DigestMismatch):
            # What was there before may have been of other bytes; what this session sent is not.
            return began.offset > 0
        if transfer.session.offset == 0:
            self._chunks_refused = True
        return True

    def _chunk_bytes(self, content: Outgoing, *, killed: bool) -> int | None:
        """The most that a chunk may have; None to send all in one request."""
        most = most_chunk(content.size, self._profile.chunk_bytes, killed=killed)
        chunked = self._profile.style is UploadStyle.CHUNKED and not self._chunks_refused
        return most if chunked and content.size > min(most, _FIRST_CHUNK) else None

    def _resumed(self, note: UploadNote) -> Session | None:
        noted = note.recall()
        if noted is None:
            return None
        try:
            return self._uploader.ask(noted)
        except (RemoteRefused, NotFound, AccessDenied):
            return None

    def _opened(self, digest: Digest) -> Session | None:
        """A new session, or None when another repository's blob could be mounted."""
        session: Session | None = None
        for source in self._mount_from:
            try:
                session = self._uploader.mount(digest, source)
            except (AccessDenied, NotFound, RemoteRefused):
                # The source may be private or gone: then the blob is sent as if nobody had it.
                continue
            if session is None:
                return None
        return session or self._uploader.begin()


class Transfer:
    """One run at the rest of a blob; `session` is the newest known, whatever happened."""

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
        """Send all that is missing: in chunks of at most `most` bytes or, for None, in one request.

        Raises StopRequested, where the callback asked for it, between two chunks.
        """
        self._note.keep(self.session)
        # A small blob is no more than a chunk.
        self._tally.patient = most is not None or content.size <= _FIRST_CHUNK
        if most is not None:
            self._send_chunks(content, most)
        elif content.passes and self.session.offset < content.size:
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
