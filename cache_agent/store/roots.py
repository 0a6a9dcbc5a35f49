"""A node's store: one or more roots, each a complete store on its own filesystem.

Models and leases are found in any root; a new model is placed on one root (`placement`) and stays there. A root whose
disk fails is left out while the others go on. Thread-safe. No network access.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cache_agent.errors import DiskFailed
from cache_agent.store.disk import is_plain_file
from cache_agent.store.placement import RootFacts, choose_root
from cache_agent.store.policy import evictable
from cache_agent.store.space import SpaceLimits, SpaceView
from cache_agent.store.store import Store, StoreOptions
from cache_agent.store.usable_stores import (
    FilesOfRoots,
    LeasesOfRoots,
    ModelsOfRoots,
    UsableStores,
)
from modelimage.digest import Digest
from modelimage.errors import InvalidInput, NotWritable


@dataclass(frozen=True, slots=True)
class IncomingModel:
    """A model that a running pull brings to a store, with the sizes of its files."""

    key: Digest
    store: Store
    files: Mapping[Digest, int]


class Roots:
    """The open stores of one node. `models`, `files` and `leases` find theirs in any root."""

    def __init__(self, stores: Sequence[Store], left_out: Mapping[Path, str] | None = None) -> None:
        self._usable = UsableStores(tuple(stores), dict(left_out or {}))
        self.models = ModelsOfRoots(self._usable)
        self.files = FilesOfRoots(self._usable)
        self.leases = LeasesOfRoots(self._usable)
        self._placed: list[IncomingModel] = []
        self._lock = threading.RLock()

    @classmethod
    def open(cls, main: Path, more: Sequence[Path], options: StoreOptions) -> Roots:
        """Open all roots. The main one must open; an extra one whose disk fails is left out.

        Raises Busy, NotWritable, NoSpace, DiskFailed; InvalidInput for overlapping roots.
        """
        refuse_overlap([main, *more])
        left_out: dict[Path, str] = {}
        # Closes the roots that are open already when another one raises.
        with ExitStack() as opened:
            stores = [opened.enter_context(Store(main, options))]
            for root in more:
                try:
                    stores.append(opened.enter_context(Store(root, options)))
                except (DiskFailed, NotWritable) as error:
                    # Busy isn't caught: a root in use elsewhere is a wrong setting, not a failed disk.
                    left_out[root] = error.message
            opened.pop_all()
        return cls(stores, left_out)

    @property
    def stores(self) -> tuple[Store, ...]:
        """The open stores, the main one first."""
        return self._usable.stores

    @property
    def left_out(self) -> Mapping[Path, str]:
        """Unusable extra roots, with the reason."""
        return self._usable.left_out

    @property
    def first(self) -> Store:
        """The main store; its root is the node's address."""
        return self._usable.first

    def others(self, store: Store) -> list[Store]:
        """All stores but one."""
        return self._usable.others(store)

    def close(self) -> None:
        """Release the locks. Running pulls must have ended."""
        for store in self.stores:
            store.close()

    def set_limits(self, limits: SpaceLimits) -> None:
        """Set budget and minimum free space of each root. Evicts nothing until space is needed."""
        for store in self.stores:
            store.space.limits = limits

    @contextmanager
    def placed(self, key: Digest, files: Callable[[], Mapping[Digest, int]]) -> Iterator[Store]:
        """Choose the store that a model is pulled to. `files` returns its file
        sizes; called only when there is a choice.

        While inside, other pulls of the model use the same store, and pulls of models that share files prefer it.
        """
        # Chosen and recorded under one lock: pulls that share files must see each other's placement.
        with self._lock:
            placed = IncomingModel(key, *self._choose(key, files))
            self._placed.append(placed)
        try:
            # A repair of the whole store would remove the pull's partials.
            with placed.store.gate.working():
                yield placed.store
        finally:
            with self._lock:
                self._placed.remove(placed)

    def _choose(
        self, key: Digest, files: Callable[[], Mapping[Digest, int]]
    ) -> tuple[Store, Mapping[Digest, int]]:
        if len(self.stores) == 1:
            return self.first, {}
        wanted = files()
        usable: list[tuple[Store, RootFacts]] = []
        for store in self.stores:
            with suppress(DiskFailed):  # a failed disk takes no new model
                usable.append((store, self._facts(store, key, wanted)))
        if not usable:
            # Every disk failed: let the main one raise its error.
            return self.first, wanted
        return usable[choose_root([facts for _, facts in usable], sum(wanted.values()))][0], wanted

    def _facts(self, store: Store, key: Digest, wanted: Mapping[Digest, int]) -> RootFacts:
        coming = [placed for placed in self._placed if placed.store is store]
        expected = {digest for placed in coming for digest in placed.files}
        return RootFacts(
            headroom=store.space.view().headroom,
            evictable=evictable(store.space.candidates()),
            # Files that other pulls bring to this root count too: they will be shared.
            held=sum(
                size
                for digest, size in wanted.items()
                if digest in expected or store.files.get(digest) is not None
            ),
            home=any(placed.key == key for placed in coming)
            or store.models.has(key)
            or is_plain_file(store.paths.journal(key)),
        )

    def spaces(self) -> list[tuple[Store, SpaceView]]:
        """The space of every usable root."""
        return list(self._usable.ask(lambda s: s.space.view()))


def refuse_overlap(roots: Sequence[Path]) -> None:
    """Raises InvalidInput when one root is another or lies within it."""
    resolved = [root.resolve() for root in roots]
    for number, one in enumerate(resolved):
        for other in resolved[:number]:
            if one == other or one.is_relative_to(other) or other.is_relative_to(one):
                raise InvalidInput(
                    f"the roots {other} and {one} overlap", hint="Give each a directory of its own."
                )
