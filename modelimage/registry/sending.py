"""How a blob gets into a repository: mounted, resumed, in chunks or in one request, whatever the registry takes.

Only the newest Location of a session is any good, so it is noted after each chunk; after any failure the registry is
asked how far it got. A registry that refuses the first chunk gets the blob in one request, and so do the next blobs.
"""

from __future__ import annotations

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


def chunk_stop(session: Session, size: int, chunk: int) -> int:
    """Where the chunk that begins at the session's offset ends. Pure.

    No chunk but the last is below the registry's minimum; a last one that would be is joined to the one before.
    """
    length = max(chunk, session.minimum)
    stop = session.offset + length
    return size if size - stop < session.minimum or stop >= size else stop


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
    ) -> None:
        self._uploader = uploader
        self._profile = profile
        self._backoff = backoff
        self._memory = memory
        self._mount_from = tuple(mount_from)
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
        while session is not None:
            transfer = Transfer(self._uploader, session, note, tally)
            chunk = self._chunk_bytes(content)
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

    def _chunk_bytes(self, content: Outgoing) -> int | None:
        """The size of chunks; None to send all in one request."""
        chunk = self._profile.chunk_bytes
        chunked = self._profile.style is UploadStyle.CHUNKED and not self._chunks_refused
        return chunk if chunked and content.size > chunk else None

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
        self, uploader: Uploader, session: Session, note: UploadNote, tally: Tally
    ) -> None:
        self._uploader = uploader
        self._note = note
        self._tally = tally
        self.session = session

    def run(self, content: Outgoing, chunk: int | None) -> None:
        """Send all that is missing, in chunks or, for None, in one request."""
        size = content.size
        self._note.keep(self.session)
        while (chunk is not None or content.passes) and self.session.offset < size:
            stop = size if chunk is None else chunk_stop(self.session, size, chunk)
            self.session = self._uploader.append(
                self.session, content, stop, self._tally, ranged=chunk is not None
            )
            self._note.keep(self.session)
        self._uploader.finish(self.session, content, self._tally)
