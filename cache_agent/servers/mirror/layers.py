"""An index of the layers that can be rebuilt from stored files, made from the records of cached models."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from cache_agent.store.roots import Roots
from modelimage.digest import Digest
from modelimage.errors import WeightyardError
from modelimage.foreign import AnyRecord
from modelimage.publication import record_layer
from modelimage.recipe import Literal, Recipe, models_link_layer
from modelimage.record import Record

_LINK = models_link_layer()
LINK_LAYER = (Digest.of(_LINK), Recipe.from_segments([Literal(_LINK)]))


@dataclass
class LayerIndex:
    """Finds records by the layers that they describe. Thread-safe."""

    store: Roots
    # None for a damaged record, so that it isn't read again at each request.
    _records: dict[Digest, AnyRecord | None] = field(default_factory=dict)
    _by_layer: dict[Digest, set[Digest]] = field(default_factory=dict)
    _by_record_layer: dict[Digest, Digest] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def with_layer(self, layer: Digest) -> list[AnyRecord]:
        """The records of cached models, foreign ones too, that have a recipe for this layer."""
        with self._lock:
            self._refresh()
            return [r for key in self._by_layer.get(layer, ()) if (r := self._records.get(key))]

    def record_in(self, layer: Digest) -> Record | None:
        """The record of a cached model whose record layer this is."""
        with self._lock:
            self._refresh()
            key = self._by_record_layer.get(layer)
            record = self._records.get(key) if key else None
        return record if isinstance(record, Record) else None

    def _refresh(self) -> None:
        # Incremental, because reading every record at each request would be slow.
        keys = self.store.models.keys()
        for key in self._records.keys() - keys:
            del self._records[key]
            self._by_record_layer = {d: k for d, k in self._by_record_layer.items() if k != key}
            for holders in self._by_layer.values():
                holders.discard(key)
            self._by_layer = {layer: keys for layer, keys in self._by_layer.items() if keys}
        for key in keys - self._records.keys():
            self._records[key] = record = self._read(key)
            if isinstance(record, Record):
                self._by_record_layer[Digest.of(record_layer(record))] = key
            for layer in record.layers if record else ():
                # A compressed layer can't be rebuilt. A layer without files has none whose proof would authorize it.
                if record and record.layer_files(layer.digest) and record.recipe(layer.digest):
                    self._by_layer.setdefault(layer.digest, set()).add(key)

    def _read(self, key: Digest) -> AnyRecord | None:
        try:
            return self.store.models.record(key)
        except WeightyardError:
            return None  # damaged; `check` reports it
