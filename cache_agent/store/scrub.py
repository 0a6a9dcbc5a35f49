"""The scrubber: reads stored files again, oldest verdict first, within an IO budget, and says what is damaged.

Reading only: what becomes of a damaged file is decided by who asked. A file whose bytes are right gets a new
'last verified' and, where they weren't known, its chunk digests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from cache_agent.errors import DiskFailed
from cache_agent.observability.events import Events
from cache_agent.store.check import read_file
from cache_agent.store.ledger import Ledger
from cache_agent.store.paths import StorePaths
from cache_agent.store.values import StoredFile
from modelimage.digest import Digest

_BATCH = 16


@dataclass(frozen=True, slots=True)
class Damage:
    """A stored file that isn't what its name says."""

    digest: Digest
    detail: str


@dataclass(frozen=True, slots=True)
class Scrubber:
    """`period` is how old a verdict may grow, in seconds; `pause` is told of bytes read and may wait."""

    paths: StorePaths
    ledger: Ledger
    events: Events
    clock: Callable[[], float]
    period: float
    pause: Callable[[int], None] = lambda count: None

    def due(self) -> Iterator[StoredFile]:
        """The files whose verdict is too old; a clock that jumped back makes verdicts of the future due as well."""
        now = self.clock()
        seen: set[Digest] = set()
        while True:
            batch = self.ledger.files_due(now - self.period, now, _BATCH + len(seen))
            fresh = [file for file in batch if file.digest not in seen]
            if not fresh:
                return
            for file in fresh:
                seen.add(file.digest)
                yield file

    def scrub(self, file: StoredFile) -> Damage | None:
        """Read one file: its damage, or None when it is right (or was removed meanwhile)."""
        path = self.paths.file(file.digest)
        try:
            verdict = read_file(path, self.pause)
        except DiskFailed as error:
            if self.ledger.file(file.digest) is None:
                return None
            self.events.damaged(file.digest.hex, error.message)
            return Damage(file.digest, error.message)
        self.events.scrubbed(verdict.size)
        if verdict.sha256 == file.digest:
            with self.ledger.transaction():
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
        wrong = [
            index
            for index, (was, now) in enumerate(zip(file.chunks, verdict.chunks, strict=False))
            if was != now
        ]
        detail = f"chunks {wrong} changed" if wrong else f"its bytes are {verdict.sha256}"
        self.events.damaged(file.digest.hex, detail)
        return Damage(file.digest, detail)
