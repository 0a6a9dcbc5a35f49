"""Keeps memory-tier models in the page cache; backs off when the kernel evicts them."""

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

# The share of a model's bytes that must be in memory for it to count as warm.
_ENOUGH: Final = 0.95
# A read measures the disk only if at most this share was in memory before, and at least this many bytes were read.
_COLD: Final = 0.1
_TELLING: Final = 64 << 20
# A model that the kernel evicted is left alone for this long, because memory is short.
REST_SECONDS: Final = 600.0


@dataclass
class Memory:
    """The memory tier of one node. Methods read files: call them in a thread.

    `read_rate`: the rate at which a model was last read from the disk, in bytes per second; None until measured.
    """

    roots: Roots
    warmer: PageCacheWarmer
    clock: Callable[[], float]
    monotonic: Callable[[], float] = time.monotonic
    read_rate: int | None = None
    warm: frozenset[Digest] = frozenset()
    _resting: dict[Digest, float] = field(default_factory=dict)

    def bring(self, key: Digest) -> None:
        """Read a model into memory; afterwards it is in `warm` or in `cold`."""
        try:
            store = self.roots.models.require_store(key)
            digests = [file.digest for file in store.ledger.model_files(key)]
            files = [store.paths.file(digest) for digest in digests]
            before, start = self.warmer.measure(files), self.monotonic()
            # Held, so that no file is evicted while it is read.
            with store.files.hold(digests):
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
        """Check which of these models are still in memory. The others are read again after `REST_SECONDS`."""
        for key in list(self.warm):
            if key not in wanted:
                self.warm -= {key}
                continue
            store = self.roots.models.store_of(key)
            if store is None:  # evicted since the last look
                self.warm -= {key}
                continue
            files = [store.paths.file(file.digest) for file in store.ledger.model_files(key)]
            now = self.warmer.measure(files)
            if not _stays(now.resident, now.size, now.believable):
                self._rest(key)

    def cold(self) -> frozenset[Digest]:
        """The models that didn't stay in memory, for `REST_SECONDS` after that was noticed."""
        now = self.clock()
        self._resting = {key: until for key, until in self._resting.items() if until > now}
        return frozenset(self._resting)

    def room(self) -> int:
        """The most bytes that desired models may have in memory: what they have now plus what is free."""
        held = sum(
            model.size for key in self.warm if (model := self.roots.models.get(key)) is not None
        )
        return held + max(0, self.warmer.budget or self.warmer.facts.available())

    def _rest(self, key: Digest) -> None:
        self.warm -= {key}
        self._resting[key] = self.clock() + REST_SECONDS


def read_rate(before: Resident, read: int, seconds: float) -> int | None:
    """The disk's rate in bytes per second, to two digits; None for a read that came from memory or was short."""
    cold = before.believable and before.resident <= before.size * _COLD
    if not cold or read < _TELLING or seconds <= 0:
        return None
    return int(float(f"{read / seconds:.2g}"))


def _stays(resident: int, size: int, believable: bool) -> bool:
    """Whether a model counts as in memory. Where the kernel hides residency, what was read is assumed to stay."""
    return not believable or resident >= size * _ENOUGH
