"""Queries over the stores of all roots: models, files and leases are found in any of them.

A root whose disk fails is left out while the others go on. Thread-safe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from cache_agent.errors import DiskFailed
from cache_agent.observability.events import EvictionReason, ModelEvicted
from cache_agent.store.models import not_stored
from cache_agent.store.store import Store
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
from modelimage.errors import InvalidInput, NotFound
from modelimage.record import RecordFile

# Imported where a record is read: most commands read none, and foreign images have many modules.
if TYPE_CHECKING:
    from modelimage.foreign import AnyRecord

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class UsableStores:
    """The open stores, the main one first. `left_out`: the roots whose disk fails now, with the reason."""

    stores: tuple[Store, ...]
    left_out: dict[Path, str] = field(default_factory=dict)

    @property
    def first(self) -> Store:
        """The main store."""
        return self.stores[0]

    def others(self, store: Store) -> list[Store]:
        """All stores but one."""
        return [each for each in self.stores if each is not store]

    def ask(self, question: Callable[[Store], T]) -> Iterator[tuple[Store, T]]:
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


@dataclass(frozen=True, slots=True)
class ModelsOfRoots:
    """The models of all roots; each model is on one of them. Raises DiskFailed for the main root."""

    stores: UsableStores

    def store_of(self, key: Digest) -> Store | None:
        """The store that has a model."""
        found = self.stores.ask(lambda s: s.models.has(key))
        return next((store for store, there in found if there), None)

    def require_store(self, key: Digest) -> Store:
        """The store that has a model. Raises NotFound."""
        store = self.store_of(key)
        if store is None:
            raise not_stored(key)
        return store

    def all(self) -> list[StoredModel]:
        """All models, by key."""
        found = self.stores.ask(lambda s: s.models.all())
        return sorted((model for _, some in found for model in some), key=lambda model: model.key)

    def keys(self, prefix: str = "") -> set[Digest]:
        """The keys that begin with some hex digits."""
        found = self.stores.ask(lambda s: s.models.keys(prefix))
        return {key for _, some in found for key in some}

    def get(self, key: Digest) -> StoredModel | None:
        store = self.store_of(key)
        return store.models.get(key) if store else None

    def find(self, text: str) -> StoredModel:
        """Find a model by key, key prefix or image. Raises NotFound, InvalidInput when ambiguous."""
        prefix = text.removeprefix("sha256:")
        keys: set[Digest] = set()
        if len(prefix) >= 4 and all(letter in "0123456789abcdef" for letter in prefix):
            keys = self.keys(prefix)
        # Only if no key matches: this reads every model.
        keys = keys or {m.key for m in self.all() if text in (m.image, *self.images_of(m.key))}
        if len(keys) > 1:
            names = ", ".join(key.short for key in sorted(keys)[:5])
            raise InvalidInput(f"{text!r} names several models: {names}", hint="Give the full key.")
        model = self.get(keys.pop()) if keys else None
        if model is None:
            raise NotFound(f"no model {text!r} in the store", hint="See `weightyard ls`.")
        return model

    def images_of(self, key: Digest) -> list[str]:
        """The image references that resolve to a model."""
        found = self.stores.ask(lambda s: s.models.images_of(key))
        return list(dict.fromkeys(image for _, images in found for image in images))

    def resolved(self, image: str, variant: str | None) -> tuple[StoredModel, float] | None:
        """The cached model that an image last resolved to, and when: used while its registry is unreachable."""
        found = self.stores.ask(lambda s: s.models.resolved(image, variant))
        return max((each for _, each in found if each), key=lambda each: each[1], default=None)

    def resolved_ref(self, image: str, variant: str | None) -> ResolvedRef | None:
        """Like `resolved`, without loading the model's leases, one for each pod."""
        found = self.stores.ask(lambda s: s.models.resolved_ref(image, variant))
        return max((each for _, each in found if each), key=lambda each: each.at, default=None)

    def origin(self, key: Digest) -> ImageOrigin:
        """A model's origin. Raises NotFound, DiskFailed, InvalidImage."""
        return self.require_store(key).models.origin(key)

    def record(self, key: Digest) -> AnyRecord:
        """A cached model's record. Raises NotFound, DiskFailed, InvalidImage."""
        return self.require_store(key).models.record(key)

    def remove(
        self, key: Digest, *, unpin: bool = False, reason: EvictionReason = EvictionReason.REMOVAL
    ) -> int:
        """Remove a model and the files that only it contains; returns the bytes freed. Raises NotFound, InUse."""
        store = self.require_store(key)
        model = store.ledger.model(key)
        # Without an agent no one else ends the lease of a holder that was killed.
        store.leases.expire()
        freed = store.models.remove(key, unpin=unpin)
        image = model.image if model else ""
        store.space.events.emit(ModelEvicted(image, freed, reason))
        return freed

    def pin(self, key: Digest, *, pinned: bool) -> None:
        """Pin or unpin a model. Raises NotFound."""
        self.require_store(key).models.pin(key, pinned=pinned)


@dataclass(frozen=True, slots=True)
class FilesOfRoots:
    """The files of all roots; a file may be on several. Raises DiskFailed for the main root."""

    stores: UsableStores

    def store_of(self, digest: Digest) -> Store | None:
        """A store that has a file."""
        found = self.stores.ask(lambda s: s.files.get(digest))
        return next((store for store, file in found if file), None)

    def get(self, digest: Digest) -> StoredFile | None:
        store = self.store_of(digest)
        return store.files.get(digest) if store else None

    def path(self, digest: Digest) -> Path:
        """The path of a file, stored or not."""
        return (self.store_of(digest) or self.stores.first).paths.file(digest)

    def count(self) -> int:
        return sum(count for _, count in self.stores.ask(lambda s: s.files.count()))

    def is_authorized(self, repository: str, file: RecordFile) -> bool:
        """Whether this file came from this layer of this repository before."""
        found = self.stores.ask(lambda s: s.files.is_authorized(repository, file))
        return any(authorized for _, authorized in found)

    @contextmanager
    def hold(self, digests: Iterable[Digest]) -> Iterator[None]:
        """Protect files from removal while inside."""
        held = list(digests)
        with ExitStack() as stack:
            # On every root: a file may be stored on several.
            for store in self.stores.stores:
                stack.enter_context(store.files.hold(held))
            yield


@dataclass(frozen=True, slots=True)
class LeasesOfRoots:
    """The leases of all roots; an id names one lease on the whole node. Raises DiskFailed for the main root."""

    stores: UsableStores

    def all(self) -> list[Lease]:
        """All leases, by id."""
        found = self.stores.ask(lambda s: s.leases.all())
        return sorted((lease for _, some in found for lease in some), key=lambda lease: lease.id)

    def get(self, lease_id: str) -> Lease | None:
        found = self.stores.ask(lambda s: s.leases.get(lease_id))
        return next((lease for _, lease in found if lease is not None), None)

    def take(self, key: Digest, holder: Holder, lease_id: str | None = None) -> Lease:
        """Lease a model durably, before it is mounted. Idempotent by id. Raises NotFound."""
        (lease,) = self.take_all([Use(key, holder, lease_id)])
        if lease is None:
            raise not_stored(key)
        return lease

    def take_all(self, uses: Sequence[Use]) -> list[Lease | None]:
        """Lease several models, those of one root in one commit; None for a model that isn't stored."""
        given: list[Lease | None] = [None] * len(uses)
        for store, leases in self.stores.ask(lambda s: s.leases.take_all(uses)):
            # A model lies on one root, so at most one store returns a lease.
            given = [lease or before for lease, before in zip(leases, given, strict=True)]
            self._end_elsewhere(store, [lease.id for lease in leases if lease])
        return given

    def _end_elsewhere(self, store: Store, lease_ids: Sequence[str]) -> None:
        """Release lease ids in all other roots."""
        for other in self.stores.others(store):
            with suppress(DiskFailed):
                other.leases.release_all(lease_ids)

    def release(self, lease_id: str) -> bool:
        """End a lease; False when there is none, which isn't an error."""
        return self.release_all([lease_id])[0]

    def release_all(self, lease_ids: Sequence[str]) -> list[bool]:
        """End leases, those of one root in one commit; returns for each whether it existed."""
        ended = [every for _, every in self.stores.ask(lambda s: s.leases.release_all(lease_ids))]
        return [any(each) for each in zip(*ended, strict=True)]
