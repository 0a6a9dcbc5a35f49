"""The sha256 of a file whose chunks arrive in any order.

sha256 has one state and one direction. A chunk that arrives just when its turn has come is hashed from the buffer
it was received in; chunks that arrived early are read back from the page cache when the hash reaches them.
Nothing counts before its chunk is verified: a chunk that turns out wrong leaves no trace in the hash.
"""

from __future__ import annotations

import hashlib
import threading
from typing import Protocol

from modelimage.digest import Digest


class Hash(Protocol):
    """What hashlib's objects are."""

    def update(self, data: memoryview, /) -> None: ...
    def copy(self) -> Hash: ...
    def hexdigest(self) -> str: ...


class LayerHash:
    """The hash of a file, and along with it that of a layer which holds nothing else: `before`, the file, `after`."""

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
        """The file's."""
        return self._file.hexdigest()

    def layer(self) -> Digest:
        """The layer's, if the file ends here."""
        whole = self._layer.copy()
        whole.update(memoryview(self._after))
        return Digest(whole.hexdigest())


class InOrderHasher:
    """Hashes `count` chunks in order. One thread at a time holds the turn; the others don't wait for it."""

    def __init__(self, count: int, hashed: Hash | None = None) -> None:
        self._count = count
        self._position = 0
        self._hash: Hash = hashed or hashlib.sha256()
        self._taken = False
        self._lock = threading.Lock()

    def take(self, index: int) -> Hash | None:
        """The turn to hash chunk `index`, if it is next and nobody has the turn: a copy to update while reading."""
        with self._lock:
            if self._taken or index != self._position:
                return None
            self._taken = True
            return self._hash.copy()

    def next_turn(self, ready: set[int]) -> tuple[int, Hash] | None:
        """The turn for whichever chunk is next, if it is among those verified and nobody has the turn."""
        with self._lock:
            if self._taken or self._position not in ready:
                return None
            self._taken = True
            return self._position, self._hash.copy()

    def give(self, hashed: Hash) -> None:
        """End the turn: the chunk is verified and `hashed` has seen all of it."""
        with self._lock:
            self._hash, self._taken = hashed, False
            self._position += 1

    def give_up(self) -> None:
        """End the turn without a result."""
        with self._lock:
            self._taken = False

    def digest(self) -> Digest | None:
        """The file's sha256, once every chunk was hashed."""
        with self._lock:
            done = self._position == self._count and not self._taken
            return Digest(self._hash.hexdigest()) if done else None

    def layer(self) -> Digest | None:
        """The layer's digest, once every chunk was hashed, if it was to be computed."""
        with self._lock:
            done = self._position == self._count and not self._taken
            return self._hash.layer() if done and isinstance(self._hash, LayerHash) else None
