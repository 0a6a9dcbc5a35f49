"""Decides which pulls run now: each has a thread and up to hundreds of open files, so they are bounded together.

Fair: a registry, and a namespace in it, holds no more than its part, and who holds least goes first. So pulls that wait
for a slow registry hold up neither other registries nor, for long, other tenants of the same one. Pure: starts nothing.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

T = TypeVar("T")

# With the descriptors of their partials they fit in the agent's limit; transfers are bounded separately.
MOST: Final = 32
EACH_REGISTRY: Final = 24
EACH_NAMESPACE: Final = 12
# More than a node has pods, several times over.
MOST_WAITING: Final = 1000


@dataclass(frozen=True, slots=True)
class _Entry:
    """A pull's place: `registry` and `namespace` are the parts of its repository that share limits."""

    registry: str
    namespace: str
    priority: int
    number: int

    @classmethod
    def of(cls, repository: str, priority: int, number: int) -> _Entry:
        registry, _, path = repository.partition("/")
        return cls(registry, f"{registry}/{path.partition('/')[0]}", priority, number)


@dataclass
class PullQueue(Generic[T]):
    """The pulls that wait and those that run. Not thread-safe: its owner calls it under a lock."""

    most: int = MOST
    each_registry: int = EACH_REGISTRY
    each_namespace: int = EACH_NAMESPACE
    most_waiting: int = MOST_WAITING
    _waiting: dict[T, _Entry] = field(default_factory=dict)
    _running: dict[T, _Entry] = field(default_factory=dict)
    _held: Counter[str] = field(default_factory=Counter)
    _number: int = 0

    def enter(self, pull: T, repository: str, priority: int) -> bool:
        """Let a pull wait for its turn, which `next` gives; False where too many wait already."""
        if len(self._waiting) >= self.most_waiting:
            return False
        self._number += 1
        self._waiting[pull] = _Entry.of(repository, priority, self._number)
        return True

    def next(self) -> T | None:
        """The pull whose turn it is, which runs from now on; None when none may start.

        Law: no limit is exceeded, and of those that may start none has a higher priority.
        """
        if len(self._running) >= self.most:
            return None
        free = [(pull, entry) for pull, entry in self._waiting.items() if self._is_free(entry)]
        if not free:
            return None
        pull, entry = min(free, key=lambda each: self._order(each[1]))
        del self._waiting[pull]
        self._running[pull] = entry
        self._held.update((entry.registry, entry.namespace))
        return pull

    def withdraw(self, pull: T) -> bool:
        """Remove a pull that still waits; False for any other."""
        return self._waiting.pop(pull, None) is not None

    def leave(self, pull: T) -> None:
        """Note that a running pull has ended; does nothing for one that never ran."""
        entry = self._running.pop(pull, None)
        if entry is not None:
            self._held.subtract((entry.registry, entry.namespace))
            self._held += Counter()  # without the names at zero

    def _is_free(self, entry: _Entry) -> bool:
        return (
            self._held[entry.registry] < self.each_registry
            and self._held[entry.namespace] < self.each_namespace
        )

    def _order(self, entry: _Entry) -> tuple[int, int, int]:
        return -entry.priority, self._held[entry.namespace], entry.number
