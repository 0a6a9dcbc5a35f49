"""The models of one open store: finds, publishes, pins and removes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cache_agent.store.disk import Disk
from cache_agent.store.ledger import Ledger
from cache_agent.store.links import read_origin, read_record
from cache_agent.store.paths import StorePaths
from cache_agent.store.pins import Pins
from cache_agent.store.publisher import Publisher
from cache_agent.store.removal import Remover
from cache_agent.store.values import ImageOrigin, ResolvedRef, StoredModel
from modelimage.digest import Digest
from modelimage.errors import NotFound

# Imported where a record is read: most commands read none, and foreign images have many modules.
if TYPE_CHECKING:
    from modelimage.foreign import AnyRecord


@dataclass(frozen=True, slots=True)
class StoreModels:
    """The models of one store. Thread-safe. Raises DiskFailed, NoSpace, NotWritable."""

    paths: StorePaths
    disk: Disk
    ledger: Ledger
    publisher: Publisher
    remover: Remover
    pins: Pins
    known_layers: dict[Digest, frozenset[Digest]] = field(default_factory=dict)

    def all(self) -> list[StoredModel]:
        """All models, by key."""
        return self.ledger.models()

    def keys(self, prefix: str = "") -> list[Digest]:
        """The keys that begin with some hex digits, in order."""
        return self.ledger.model_keys(prefix)

    def has(self, key: Digest) -> bool:
        """Whether a model is stored; cheaper than `get`."""
        return self.ledger.has_model(key)

    def get(self, key: Digest) -> StoredModel | None:
        return self.ledger.model(key)

    def containing(self, digest: Digest) -> list[Digest]:
        """The keys of the models that contain a file."""
        return self.ledger.models_of(digest)

    def images_of(self, key: Digest) -> list[str]:
        """The image references that resolve to a model."""
        return self.ledger.images_of(key)

    def resolved_ref(self, image: str, variant: str | None) -> ResolvedRef | None:
        """Like `resolved`, without loading the model's leases, one for each pod."""
        return self.ledger.resolved_ref(image, variant)

    def resolved(self, image: str, variant: str | None) -> tuple[StoredModel, float] | None:
        """The cached model that an image last resolved to, and when: used while its registry is unreachable."""
        found = self.resolved_ref(image, variant)
        model = self.get(found.key) if found else None
        return (model, found.at) if found and model else None

    def origin(self, key: Digest) -> ImageOrigin:
        """A model's origin. Raises DiskFailed, InvalidImage."""
        return read_origin(self.paths.origin(key))

    def record(self, key: Digest) -> AnyRecord:
        """A cached model's record. Raises DiskFailed, InvalidImage."""
        return read_record(self.paths.record(key))

    def layers(self, key: Digest) -> frozenset[Digest]:
        """The layers of a cached foreign model; empty for other models. Its record is read once.

        Raises DiskFailed, InvalidImage.
        """
        known = self.known_layers.get(key)
        if known is None:
            from modelimage.foreign import DerivedRecord  # noqa: PLC0415

            record = self.record(key)
            layers = record.layers if isinstance(record, DerivedRecord) else ()
            # A record never changes under its key, and may take seconds to parse.
            known = self.known_layers[key] = frozenset(layer.digest for layer in layers)
            present = {*self.keys(), key}
            for each in list(self.known_layers):
                if each not in present:
                    self.known_layers.pop(each, None)
        return known

    def publish(self, record: AnyRecord, origin: ImageOrigin, fetch_seconds: float) -> StoredModel:
        """Publish a model and remove its pull's journal. The caller holds its files, which are all stored."""
        model = self.publisher.publish(record, origin, fetch_seconds)
        # After publishing: the journal protects the files until the model's row does.
        self.disk.unlink(self.paths.journal(record.key))
        return model

    def describe(self, record: AnyRecord, origin: ImageOrigin) -> None:
        """Write a stored model's record and publish record again."""
        self.publisher.describe(record, origin)

    def remove(self, key: Digest, *, unpin: bool = False) -> int:
        """Remove a model and the files that only it contains; returns the bytes freed. Raises NotFound, InUse."""
        return self.remover.remove_model(key, unpin=unpin)

    def pin(self, key: Digest, *, pinned: bool) -> None:
        """Pin or unpin a model. Raises NotFound."""
        # One transaction: the model can't be removed between the check and the pin.
        with self.ledger.transaction():
            if not self.has(key):
                raise not_stored(key)
            self.pins.set(key, pinned=pinned)


def not_stored(key: Digest) -> NotFound:
    """The error for a model that isn't stored."""
    return NotFound(f"no model {key} in the store", hint="Pull it first.")
