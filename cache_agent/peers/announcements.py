"""Announces to peers which chunks this node fetches from upstream, and which files are public.

A chunk is announced first, and peers' announcements are read afterwards: of two nodes that decide on the same chunk
concurrently, at least one sees the other. In memory only; thread-safe.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from modelimage.digest import Digest
from modelimage.recent import Recent

# An announcement that no transfer follows expires after this time: the pull ended between deciding and fetching.
_INTENTION_SECONDS: Final = 5.0
# For others the store knows which repositories proved the right to them, and whether anyone may read those.
_MOST_PUBLIC: Final = 100_000


@dataclass(frozen=True, slots=True)
class ChunkId:
    """A chunk of a file, which is named by its record's claims: see `cache_agent.store.partials.identity`."""

    file: Digest
    index: int

    @property
    def text(self) -> str:
        """The input of rendezvous hashing: equal on every node."""
        return f"{self.file.hex}/{self.index}"


@dataclass
class FetchAnnouncements:
    """The announcements of one node."""

    monotonic: Callable[[], float]
    _coming: dict[Digest, dict[int, float]] = field(default_factory=dict)
    _public: Recent[Digest, bool] = field(default_factory=lambda: Recent(_MOST_PUBLIC))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def intend(self, chunk: ChunkId) -> None:
        """Announce that this node is about to fetch a chunk from upstream."""
        self._put(chunk, self.monotonic() + _INTENTION_SECONDS)

    def begin(self, chunk: ChunkId) -> None:
        """Announce that this node is fetching a chunk, until `end`."""
        self._put(chunk, float("inf"))

    def end(self, chunk: ChunkId) -> None:
        """Withdraw a chunk: this node has it, or stopped fetching it."""
        with self._lock:
            chunks = self._coming.get(chunk.file, {})
            chunks.pop(chunk.index, None)
            # Else the table would keep an entry for every file ever fetched.
            if not chunks:
                self._coming.pop(chunk.file, None)

    def coming(self, file: Digest) -> set[int]:
        """The announced chunks of a file."""
        now = self.monotonic()
        with self._lock:
            return {index for index, until in self._coming.get(file, {}).items() if until > now}

    def is_up(self, chunk: ChunkId) -> bool:
        return chunk.index in self.coming(chunk.file)

    def busy(self) -> int:
        """The number of announced chunks of all files."""
        now = self.monotonic()
        with self._lock:
            return sum(until > now for chunks in self._coming.values() for until in chunks.values())

    def publish(self, files: Iterable[Digest]) -> None:
        """Mark files, by identity, as readable for anyone: the registry serves the image to anonymous clients."""
        for file in files:
            self._public.put(file, True)

    def is_public(self, file: Digest) -> bool:
        return self._public.get(file) is not None

    def _put(self, chunk: ChunkId, until: float) -> None:
        with self._lock:
            self._coming.setdefault(chunk.file, {})[chunk.index] = until
