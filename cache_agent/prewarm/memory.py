"""The models that should be in memory: brought there, looked after, and let be where they don't stay."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Final

from cache_agent.residency.pages import Resident
from cache_agent.residency.warmer import PageCacheWarmer
from cache_agent.store.roots import Roots
from modelimage.digest import Digest
from modelimage.errors import WeightyardError

# Of a model's bytes, in memory: then it counts as being there.
_ENOUGH: Final = 0.95
# A read tells how fast the store is when so little of it was in memory before, and so much was read.
_COLD: Final = 0.1
_TELLING: Final = 64 << 20
# One that the kernel threw out isn't fought for: it is tried again after so many seconds.
REST_SECONDS: Final = 600.0


@dataclass
class Memory:
    """One node's memory tier, for wishes. Its methods read files: call them in a thread.

    `read_rate` is how fast models were last read from the disk, in bytes a second; None until one was.
    """

    roots: Roots
    warmer: PageCacheWarmer
    clock: Callable[[], float]
    monotonic: Callable[[], float] = time.monotonic
    read_rate: int | None = None
    warm: frozenset[Digest] = frozenset()
    _resting: dict[Digest, float] = field(default_factory=dict)

    def bring(self, key: Digest) -> None:
        """Read a model into memory; `warm` or `cold` tells how it went."""
        try:
            store = self.roots.require(key)
            digests = [file.digest for file in store.ledger.model_files(key)]
            files = [store.paths.file(digest) for digest in digests]
            before, start = self.warmer.measure(files), self.monotonic()
            with store.hold(digests):
                done = self.warmer.warm(files)
            seconds = self.monotonic() - start
            self.read_rate = read_rate(before, done.read, seconds) or self.read_rate
        except WeightyardError:
            self._rest(key)
            return
        if done.stopped or not _stays(done.now.resident, done.now.size, done.now.believable):
            self._rest(key)
        else:
            self.warm |= {key}

    def look(self, wanted: Collection[Digest]) -> None:
        """Which of these are still there; the others are brought again after a rest."""
        for key in list(self.warm):
            if key not in wanted:
                self.warm -= {key}
                continue
            store = self.roots.holding(key)
            if store is None:
                self.warm -= {key}
                continue
            files = [store.paths.file(file.digest) for file in store.ledger.model_files(key)]
            now = self.warmer.measure(files)
            if not _stays(now.resident, now.size, now.believable):
                self._rest(key)

    def cold(self) -> frozenset[Digest]:
        """Those that were tried lately and don't stay."""
        now = self.clock()
        self._resting = {key: until for key, until in self._resting.items() if until > now}
        return frozenset(self._resting)

    def room(self) -> int:
        """Bytes that wishes may have in memory at most: what they have and what is free."""
        held = sum(model.size for key in self.warm if (model := self.roots.model(key)) is not None)
        return held + max(0, self.warmer.budget or self.warmer.facts.available())

    def _rest(self, key: Digest) -> None:
        self.warm -= {key}
        self._resting[key] = self.clock() + REST_SECONDS


def read_rate(before: Resident, read: int, seconds: float) -> int | None:
    """Bytes a second of the disk, to two digits; None for a read that came from memory, or was short."""
    cold = before.believable and before.resident <= before.size * _COLD
    if not cold or read < _TELLING or seconds <= 0:
        return None
    return int(float(f"{read / seconds:.2g}"))


def _stays(resident: int, size: int, believable: bool) -> bool:
    """Where the kernel hides what is in memory, what was read is taken to be there."""
    return not believable or resident >= size * _ENOUGH
