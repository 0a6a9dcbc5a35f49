"""What this node tells its peers that it is doing: which chunks it fetches from upstream, and which files are public.

A chunk is put up before it is asked for, and peers are asked afterwards whether they put it up too: of two nodes that
want the same chunk at once, at least one sees the other. In memory only; safe for threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from modelimage.digest import Digest

# How long an intention stands that nothing came of: the pull ended between deciding and asking.
_INTENTION_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class ChunkId:
    """A chunk of a file with exactly these claims: see `cache_agent.store.partials.identity`."""

    file: Digest
    index: int

    @property
    def text(self) -> str:
        """What rendezvous hashing hashes: the same on every node."""
        return f"{self.file.hex}/{self.index}"


@dataclass
class FetchAnnouncements:
    """One node's board."""

    monotonic: Callable[[], float]
    _coming: dict[Digest, dict[int, float]] = field(default_factory=dict)
    _public: set[Digest] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def intend(self, chunk: ChunkId) -> None:
        """This node is about to fetch a chunk from upstream."""
        self._put(chunk, self.monotonic() + _INTENTION_SECONDS)

    def begin(self, chunk: ChunkId) -> None:
        """It is fetching it."""
        self._put(chunk, float("inf"))

    def end(self, chunk: ChunkId) -> None:
        """It isn't any more: it has it, or gave up."""
        with self._lock:
            chunks = self._coming.get(chunk.file, {})
            chunks.pop(chunk.index, None)
            if not chunks:
                self._coming.pop(chunk.file, None)

    def coming(self, file: Digest) -> set[int]:
        """The chunks of a file that are up."""
        now = self.monotonic()
        with self._lock:
            return {index for index, until in self._coming.get(file, {}).items() if until > now}

    def is_up(self, chunk: ChunkId) -> bool:
        return chunk.index in self.coming(chunk.file)

    def busy(self) -> int:
        """How many chunks are up in all."""
        now = self.monotonic()
        with self._lock:
            return sum(until > now for chunks in self._coming.values() for until in chunks.values())

    def publish(self, files: Iterable[Digest]) -> None:
        """Anyone may read these files, by identity: the registry gave the image to nobody in particular."""
        with self._lock:
            self._public.update(files)

    def is_public(self, file: Digest) -> bool:
        with self._lock:
            return file in self._public

    def _put(self, chunk: ChunkId, until: float) -> None:
        with self._lock:
            self._coming.setdefault(chunk.file, {})[chunk.index] = until
