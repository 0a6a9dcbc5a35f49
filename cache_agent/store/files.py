"""The verified files of one open store: finds, checks, protects and admits them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from cache_agent.observability.events import Events
from cache_agent.store.ledger import Ledger
from cache_agent.store.paths import StorePaths
from cache_agent.store.publisher import CompletedFile, Publisher
from cache_agent.store.removal import Holds
from cache_agent.store.repairer import StoreRepairer
from cache_agent.store.scrub import Scrubber
from cache_agent.store.values import StoredFile
from modelimage.digest import Digest
from modelimage.record import RecordFile


@dataclass(frozen=True, slots=True)
class StoreFiles:
    """The files of one store. Thread-safe. `clock` returns seconds since the epoch. Raises DiskFailed."""

    paths: StorePaths
    ledger: Ledger
    publisher: Publisher
    holds: Holds
    repairer: StoreRepairer
    events: Events
    clock: Callable[[], float]

    def get(self, digest: Digest) -> StoredFile | None:
        return self.ledger.file(digest)

    def count(self) -> int:
        return self.ledger.file_count()

    def is_untouched(self, file: StoredFile) -> bool:
        """Whether a stored file still looks as verified: same size and modification time, and read-only.

        Costs no read, and detects an accidental write to a cached file before the file is used again.
        """
        try:
            status = self.paths.file(file.digest).lstat()
        except OSError:
            return False
        return (
            status.st_size == file.size
            and status.st_mtime_ns == file.mtime_ns
            and not status.st_mode & 0o222
        )

    def reverify(self, file: StoredFile) -> bool:
        """Read a file that fails `is_untouched`; when it is correct, make it read-only again and return True."""
        if self.scrubber(0.0, lambda count: None).scrub(file) is not None:
            return False
        # The scrub has recorded the new modification time; the mode remains to be restored.
        self.repairer.protect(self.paths.file(file.digest))
        return True

    def is_authorized(self, repository: str, file: RecordFile) -> bool:
        """Whether this file came from this layer of this repository before."""
        return self.ledger.is_authorized(repository, file.layer, file.digest)

    def hold(self, digests: Iterable[Digest]) -> AbstractContextManager[None]:
        """Protect files from removal while inside."""
        return self.holds.hold(digests)

    def admit(self, completed: Sequence[CompletedFile]) -> None:
        """Move complete, verified files into the store, in one transaction. Raises DigestMismatch, Vanished."""
        self.publisher.admit(completed)

    def scrubber(self, period: float, pause: Callable[[int], None]) -> Scrubber:
        """A scrubber of this store; `period` in seconds."""
        return Scrubber(self.paths, self.ledger, self.events, self.clock, period, pause)
