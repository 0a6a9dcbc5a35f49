"""Computes the sha256 of a file whose chunks arrive in any order.

sha256 is sequential. A chunk that arrives when it is next is hashed from its receive buffer; a chunk that arrives
early is read back from the page cache when the hash reaches it. The state advances only after a chunk is verified, so
a wrong chunk leaves no trace in it.
"""

from __future__ import annotations

import hashlib
import threading
from typing import Protocol

from modelimage.digest import Digest


class Hash(Protocol):
    """The part of hashlib's interface that is used here."""

    def update(self, data: memoryview, /) -> None: ...
    def copy(self) -> Hash: ...
    def hexdigest(self) -> str: ...


class LayerHash:
    """Hashes a file and, in the same pass, the layer that consists of `before`, the file and `after`."""

    def __init__(self, before: bytes, after: bytes) -> None:
        self._file: Hash = hashlib.sha256()
        self._layer: Hash = hashlib.sha256(before)
        self._after = after

    def update(self, data: memoryview, /) -> None:
        self._file.update(data)
        self._layer.update(data)

    def copy(self) -> LayerHash:
        made = LayerHash(b"", self._after)
        made._file, made._layer = self._file.copy(), self._layer.copy()
        return made

    def hexdigest(self) -> str:
        """The file's sha256."""
        return self._file.hexdigest()

    def layer(self) -> Digest:
        """The layer's digest, given that the file ends here."""
        whole = self._layer.copy()
        whole.update(memoryview(self._after))
        return Digest(whole.hexdigest())


class InOrderHasher:
    """Hashes `count` chunks in order. One thread at a time holds the lease; the others don't wait for it."""

    def __init__(self, count: int, hashed: Hash | None = None) -> None:
        self._count = count
        self._position = 0
        self._hash: Hash = hashed or hashlib.sha256()
        # A flag, not a held lock: a thread that doesn't get the lease writes its chunk and goes on fetching.
        self._leased = False
        self._lock = threading.Lock()

    def lease(self, index: int) -> Hash | None:
        """Lease the hash for chunk `index`, if it is next and the lease is free: a copy to update while reading."""
        with self._lock:
            if self._leased or index != self._position:
                return None
            self._leased = True
            # A copy: if the chunk turns out wrong, `drop_lease` discards it and the state is unchanged.
            return self._hash.copy()

    def lease_next(self, ready: set[int]) -> tuple[int, Hash] | None:
        """Lease the hash for the next chunk, if that is in `ready` (verified) and the lease is free."""
        with self._lock:
            if self._leased or self._position not in ready:
                return None
            self._leased = True
            # A copy: a worker that fails halfway leaves the state at the chunk's start.
            return self._position, self._hash.copy()

    def end_lease(self, hashed: Hash) -> None:
        """End the lease and advance: the chunk is verified and `hashed` includes all of it."""
        with self._lock:
            self._hash, self._leased = hashed, False
            self._position += 1

    def drop_lease(self) -> None:
        """End the lease without advancing."""
        with self._lock:
            self._leased = False

    def digest(self) -> Digest | None:
        """The file's sha256, once every chunk is hashed; None before."""
        with self._lock:
            done = self._position == self._count and not self._leased
            return Digest(self._hash.hexdigest()) if done else None

    def layer(self) -> Digest | None:
        """The layer's digest, once every chunk is hashed; None before, or if it isn't computed."""
        with self._lock:
            done = self._position == self._count and not self._leased
            return self._hash.layer() if done and isinstance(self._hash, LayerHash) else None
