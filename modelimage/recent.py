"""A bounded table: keeps the entries that were used last.

For what is keyed by names that others choose (repositories, files, hosts, peers): without a bound, a process that runs
for months would keep one entry for each name that it ever met.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """At most `most` entries; the one that wasn't used for longest goes first. Thread-safe."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._entries: OrderedDict[K, V] = OrderedDict()
        # For readers too: each look moves its entry to the end.
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K) -> V | None:
        """The value of a key; None if there is none, or none any more."""
        with self._lock:
            if key not in self._entries:
                return None
            self._entries.move_to_end(key)
            return self._entries[key]

    def put(self, key: K, value: V) -> None:
        with self._lock:
            self._put(key, value)

    def get_or_make(self, key: K, make: Callable[[], V]) -> V:
        """The value of a key, made if there is none. `make` runs under the lock, so it must not block."""
        with self._lock:
            value = self._entries[key] if key in self._entries else make()
            self._put(key, value)
            return value

    def drop(self, key: K) -> None:
        """Remove a key, if it is there."""
        with self._lock:
            self._entries.pop(key, None)

    def values(self) -> list[V]:
        with self._lock:
            return list(self._entries.values())

    def _put(self, key: K, value: V) -> None:
        self._entries[key] = value
        self._entries.move_to_end(key)
        while len(self._entries) > self._most:
            self._entries.popitem(last=False)
