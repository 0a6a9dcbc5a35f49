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


class FollowingHash:
    """Hashes `count` chunks in order. One thread at a time holds the turn; the others don't wait for it."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._position = 0
        self._hash: Hash = hashlib.sha256()
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
