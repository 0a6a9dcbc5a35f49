"""The scrubber: reads stored files again, longest unverified first, within an IO budget, and reports damage.

Read-only: the caller decides about a damaged file. A correct file gets a new 'last verified' time and, where they were
unknown, its chunk digests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from cache_agent.errors import DiskFailed
from cache_agent.observability.events import Events, FileDamaged, FileScrubbed
from cache_agent.store.checker import read_file
from cache_agent.store.ledger import Ledger
from cache_agent.store.paths import StorePaths
from cache_agent.store.values import StoredFile
from modelimage.digest import Digest

_BATCH = 16


@dataclass(frozen=True, slots=True)
class Damage:
    """A stored file whose bytes don't match its name."""

    digest: Digest
    detail: str


@dataclass(frozen=True, slots=True)
class Scrubber:
    """Scrubs one store. `period`: the maximum age of a verification in seconds;
    `pause` is called with bytes read, may wait."""

    paths: StorePaths
    ledger: Ledger
    events: Events
    clock: Callable[[], float]
    period: float
    pause: Callable[[int], None] = lambda count: None

    def due(self) -> Iterator[StoredFile]:
        """Files whose verification is too old, or in the future because the clock was set back."""
        now = self.clock()
        seen: set[Digest] = set()
        # A file that stays damaged stays due: skip those seen, and enlarge the query by their number to get past them.
        while True:
            batch = self.ledger.files_due(now - self.period, now, _BATCH + len(seen))
            fresh = [file for file in batch if file.digest not in seen]
            if not fresh:
                return
            for file in fresh:
                seen.add(file.digest)
                yield file

    def scrub(self, file: StoredFile) -> Damage | None:
        """Read one file; returns its damage, or None when it is correct or was removed meanwhile."""
        path = self.paths.file(file.digest)
        try:
            verdict = read_file(path, self.pause)
        except DiskFailed as error:
            if self.ledger.file(file.digest) is None:
                # Removed while it was read, so not damaged.
                return None
            self.events.emit(FileDamaged(file.digest.hex, error.message))
            return Damage(file.digest, error.message)
        self.events.emit(FileScrubbed(verdict.size))
        if verdict.sha256 == file.digest:
            with self.ledger.transaction():
                # Removed while it was read: a new row would claim a file that isn't there.
                if self.ledger.file(file.digest) is not None:
                    sound = replace(
                        file,
                        size=verdict.size,
                        chunks=verdict.chunks,
                        verified=self.clock(),
                        mtime_ns=verdict.mtime_ns,
                    )
                    self.ledger.put_file(sound)
            return None
        # A truncated file has fewer chunks than the ledger lists.
        wrong = [
            index
            for index, (was, now) in enumerate(zip(file.chunks, verdict.chunks, strict=False))
            if was != now
        ]
        detail = f"chunks {wrong} changed" if wrong else f"its bytes are {verdict.sha256}"
        self.events.emit(FileDamaged(file.digest.hex, detail))
        return Damage(file.digest, detail)
