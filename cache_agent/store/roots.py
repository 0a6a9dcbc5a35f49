"""A node's store: one or more roots, each a complete store on its own filesystem, behind one interface.

Models and leases are found in any root; a new model is placed on one root (`placement`) and stays there. A root whose
disk fails is left out while the others go on. Thread-safe. No network access.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cache_agent.errors import DiskFailed
from cache_agent.store.disk import is_plain_file
from cache_agent.store.placement import RootFacts, choose_root
from cache_agent.store.policy import evictable
from cache_agent.store.space import SpaceLimits, SpaceView
from cache_agent.store.store import Store, StoreOptions
from cache_agent.store.values import (
    Holder,
    ImageOrigin,
    Lease,
    ResolvedRef,
    StoredFile,
    StoredModel,
    Use,
)
from modelimage.digest import Digest
from modelimage.errors import InvalidInput, NotFound, NotWritable
from modelimage.foreign import AnyRecord
from modelimage.record import RecordFile

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class IncomingModel:
    """A model that a running pull brings to a store, with the sizes of its files."""

    key: Digest
    store: Store
    files: Mapping[Digest, int]


class Roots:
    """The open stores of one node, the main one first. `left_out`: unusable extra roots, with the reason."""

    def __init__(self, stores: Sequence[Store], left_out: Mapping[Path, str] | None = None) -> None:
        self.stores, self.left_out = tuple(stores), dict(left_out or {})
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
    def first(self) -> Store:
        """The main store; its root is the node's address."""
        return self.stores[0]

    def close(self) -> None:
        """Release the locks. Running pulls must have ended."""
        for store in self.stores:
            store.close()

    def set_limits(self, limits: SpaceLimits) -> None:
        """Set budget and minimum free space of each root. Evicts nothing until space is needed."""
        for store in self.stores:
            store.set_limits(limits)

    # -- placing -----------------------------------------------------------------------------

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
            headroom=store.space().headroom,
            evictable=evictable(store.candidates()),
            # Files that other pulls bring to this root count too: they will be shared.
            held=sum(
                size
                for digest, size in wanted.items()
                if digest in expected or store.file(digest) is not None
            ),
            home=any(placed.key == key for placed in coming)
            or store.model(key) is not None
            or is_plain_file(store.paths.journal(key)),
        )

    def others(self, store: Store) -> list[Store]:
        """All stores but one."""
        return [each for each in self.stores if each is not store]

    def _ask(self, question: Callable[[Store], T]) -> Iterator[tuple[Store, T]]:
        """Query every store. An extra root whose disk fails is skipped and noted in `left_out`; the main one raises."""
        for store in self.stores:
            try:
                answer = question(store)
            except DiskFailed as error:
                if store is self.first:
                    raise
                self.left_out[store.paths.root] = error.message
            else:
                # A disk may come back.
                self.left_out.pop(store.paths.root, None)
                yield store, answer

    def spaces(self) -> list[tuple[Store, SpaceView]]:
        """The space of every usable root."""
        return list(self._ask(lambda s: s.space()))

    # -- models ------------------------------------------------------------------------------

    def holding(self, key: Digest) -> Store | None:
        """The store that has a model."""
        found = self._ask(lambda s: s.ledger.has_model(key))
        return next((store for store, there in found if there), None)

    def require(self, key: Digest) -> Store:
        """The store that has a model. Raises NotFound."""
        store = self.holding(key)
        if store is None:
            raise NotFound(f"no model {key} in the store", hint="Pull it first.")
        return store

    def models(self) -> list[StoredModel]:
        """All models, by key."""
        every = (model for _, models in self._ask(lambda s: s.models()) for model in models)
        return sorted(every, key=lambda model: model.key)

    def model_keys(self) -> set[Digest]:
        return {key for _, keys in self._ask(lambda s: s.ledger.model_keys()) for key in keys}

    def model(self, key: Digest) -> StoredModel | None:
        store = self.holding(key)
        return store.model(key) if store else None

    def find(self, text: str) -> StoredModel:
        """Find a model by key, key prefix or image. Raises NotFound, InvalidInput when ambiguous."""
        prefix = text.removeprefix("sha256:")
        keys: set[Digest] = set()
        if len(prefix) >= 4 and all(letter in "0123456789abcdef" for letter in prefix):
            found = self._ask(lambda s: s.ledger.model_keys(prefix))
            keys = {key for _, some in found for key in some}
        # Only if no key matches: this reads every model.
        keys = keys or {m.key for m in self.models() if text in (m.image, *self.images_of(m.key))}
        if len(keys) > 1:
            names = ", ".join(key.short for key in sorted(keys)[:5])
            raise InvalidInput(f"{text!r} names several models: {names}", hint="Write the key.")
        model = self.model(keys.pop()) if keys else None
        if model is None:
            raise NotFound(f"no model {text!r} in the store", hint="See `weightyard ls`.")
        return model

    def images_of(self, key: Digest) -> list[str]:
        """The image references that resolve to a model."""
        found = self._ask(lambda s: s.images_of(key))
        return list(dict.fromkeys(image for _, images in found for image in images))

    def resolved(self, image: str, variant: str | None) -> tuple[StoredModel, float] | None:
        """The cached model that an image last resolved to, and when: used while its registry is unreachable."""
        found = self._ask(lambda s: s.resolved(image, variant))
        return max((each for _, each in found if each), key=lambda each: each[1], default=None)

    def meaning(self, image: str, variant: str | None) -> ResolvedRef | None:
        """Like `resolved`, without loading the model's leases, one for each pod."""
        found = self._ask(lambda s: s.ledger.meaning(image, variant))
        return max((each for _, each in found if each), key=lambda each: each.at, default=None)

    def origin(self, key: Digest) -> ImageOrigin:
        """A model's origin. Raises NotFound, DiskFailed, InvalidImage."""
        return self.require(key).origin(key)

    def record(self, key: Digest) -> AnyRecord:
        """A cached model's record. Raises NotFound, DiskFailed, InvalidImage."""
        return self.require(key).record(key)

    def remove(self, key: Digest, *, unpin: bool = False) -> int:
        """Remove a model and the files that only it contains; returns the bytes freed. Raises NotFound, InUse."""
        return self.require(key).remove(key, unpin=unpin)

    def pin(self, key: Digest, *, pinned: bool) -> None:
        """Pin or unpin a model. Raises NotFound."""
        self.require(key).pin(key, pinned=pinned)

    # -- files -------------------------------------------------------------------------------

    def having(self, digest: Digest) -> Store | None:
        """A store that has a file."""
        return next((store for store, file in self._ask(lambda s: s.file(digest)) if file), None)

    def file(self, digest: Digest) -> StoredFile | None:
        store = self.having(digest)
        return store.file(digest) if store else None

    def path(self, digest: Digest) -> Path:
        """The path of a file, stored or not."""
        return (self.having(digest) or self.first).paths.file(digest)

    def file_count(self) -> int:
        return sum(count for _, count in self._ask(lambda s: s.file_count()))

    def is_authorized(self, repository: str, file: RecordFile) -> bool:
        """Whether this file came from this layer of this repository before."""
        return any(proven for _, proven in self._ask(lambda s: s.is_authorized(repository, file)))

    @contextmanager
    def hold(self, digests: Iterable[Digest]) -> Iterator[None]:
        """Protect files from removal while inside."""
        held = list(digests)
        with ExitStack() as stack:
            # On every root: a file may be stored on several.
            for store in self.stores:
                stack.enter_context(store.hold(held))
            yield

    # -- leases ------------------------------------------------------------------------------

    def lease(self, key: Digest, holder: Holder, lease_id: str | None = None) -> Lease:
        """Lease a model durably, before it is mounted. Idempotent by id. Raises NotFound."""
        (lease,) = self.lease_all([Use(key, holder, lease_id)])
        if lease is None:
            raise NotFound(f"no model {key} in the store", hint="Pull it first.")
        return lease

    def lease_all(self, uses: Sequence[Use]) -> list[Lease | None]:
        """Lease several models, those of one root in one commit; None for a model that isn't stored."""
        given: list[Lease | None] = [None] * len(uses)
        for store, leases in self._ask(lambda s: s.lease_all(uses)):
            # A model lies on one root, so at most one store returns a lease.
            given = [lease or before for lease, before in zip(leases, given, strict=True)]
            self._end_elsewhere(store, [lease.id for lease in leases if lease])
        return given

    def _end_elsewhere(self, store: Store, lease_ids: Sequence[str]) -> None:
        """Release a lease id in all other roots: an id names one lease on the whole node."""
        for other in self.others(store):
            with suppress(DiskFailed):
                other.release_all(lease_ids)

    def release(self, lease_id: str) -> bool:
        """End a lease; False when there is none, which is no error."""
        return self.release_all([lease_id])[0]

    def release_all(self, lease_ids: Sequence[str]) -> list[bool]:
        """End leases, those of one root in one commit; returns for each whether it existed."""
        ended = [every for _, every in self._ask(lambda s: s.release_all(lease_ids))]
        return [any(each) for each in zip(*ended, strict=True)]

    def lease_named(self, lease_id: str) -> Lease | None:
        """The lease with this id."""
        found = self._ask(lambda s: s.lease_named(lease_id))
        return next((lease for _, lease in found if lease is not None), None)

    def leases(self) -> list[Lease]:
        """All leases, by id."""
        every = (lease for _, leases in self._ask(lambda s: s.leases()) for lease in leases)
        return sorted(every, key=lambda lease: lease.id)


def refuse_overlap(roots: Sequence[Path]) -> None:
    """Raises InvalidInput when one root is another or lies within it."""
    resolved = [root.resolve() for root in roots]
    for number, one in enumerate(resolved):
        for other in resolved[:number]:
            if one == other or one.is_relative_to(other) or other.is_relative_to(one):
                raise InvalidInput(
                    f"the roots {other} and {one} overlap", hint="Give each a directory of its own."
                )
