"""Finds layers of a foreign image that a node already has: from cached models, and from interrupted pulls.

Bytes fetched through another repository are used only if the caller's own credentials can read the layer they came in.
That they make up that layer was computed on this node.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from cache_agent.fetch.foreign.fetch_plan import Found, LayerPlan
from cache_agent.fetch.foreign.layer_sinks import verify_files
from cache_agent.fetch.reuse_check import can_read
from cache_agent.store.links import read_record
from cache_agent.store.store import Store
from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.errors import InvalidImage, NotWritable
from modelimage.foreign import DerivedLayer, DerivedRecord, LayerContents
from modelimage.hasher import FileDigests, hash_file
from modelimage.repository import ImageReader


class LayerLocks:
    """The layers of foreign images being fetched on this node: each by one pull at a time. Thread-safe."""

    def __init__(self) -> None:
        self._claimed: set[Digest] = set()
        self._changed = threading.Condition()

    def claim(self, layers: Collection[Digest], timeout: float) -> bool:
        """Claim all layers, or none and return False if another pull still has one after `timeout` seconds.

        All or none, so two pulls can't deadlock.
        """
        with self._changed:
            if self._claimed.intersection(layers):
                # Once: the caller looks between two tries whether it was cancelled.
                self._changed.wait(timeout)
            if self._claimed.intersection(layers):
                return False
            self._claimed.update(layers)
            return True

    def release(self, layers: Collection[Digest]) -> None:
        """Release a claim."""
        with self._changed:
            self._claimed.difference_update(layers)
            self._changed.notify_all()


@dataclass
class ReusableLayers:
    """The layers of cached foreign models that one caller may use."""

    store: Store
    reader: ImageReader
    repository: str
    _readable: dict[Digest, bool] = field(default_factory=dict)

    def record(self, key: Digest) -> DerivedRecord | None:
        """The record of a cached model, if all its files may be used."""
        record = self._record(key)
        if record is None:
            return None
        usable = all(
            self._may_use(
                layer.descriptor, [file.digest for file in record.layer_files(layer.digest)]
            )
            for layer in record.layers
        )
        return record if usable else None

    def find(self, layer: Descriptor) -> Found | None:
        """The contents of a layer, if a cached model has it and its files may be used."""
        # Any model with this layer will do: continue with the next if one's files are damaged or not allowed.
        for key in self.store.ledger.model_keys():
            record = self._record(key) if self._has(key, layer.digest) else None
            known = record.layer(layer.digest) if record else None
            if known is None or known.contents is None:
                continue
            digests = [found.digest for found in known.contents.files.values()]
            if self._may_use(layer, digests):
                return Found(known.contents, _literals(known))
        return None

    def is_readable(self, layer: Descriptor) -> bool:
        """Whether the caller's credentials can read a layer; requested once, then remembered."""
        if layer.digest not in self._readable:
            self._readable[layer.digest] = can_read(self.reader, layer)
        return self._readable[layer.digest]

    def _has(self, key: Digest, layer: Digest) -> bool:
        with suppress(InvalidImage, NotWritable):
            return layer in self.store.models.layers(key)
        return False

    def _record(self, key: Digest) -> DerivedRecord | None:
        if not self.store.models.has(key):
            return None
        # An unreadable record only means that nothing of this model is reused.
        with suppress(InvalidImage, NotWritable):
            record = read_record(self.store.paths.record(key))
            return record if isinstance(record, DerivedRecord) else None
        return None

    def _may_use(self, layer: Descriptor, files: Iterable[Digest]) -> bool:
        digests = set(files)
        if not all(is_sound(self.store, digest) for digest in digests):
            return False
        # A layer without files has no proof in the ledger: the caller's credentials decide.
        proven = digests and all(
            self.store.ledger.is_authorized(self.repository, layer.digest, digest)
            for digest in digests
        )
        return bool(proven) or self.is_readable(layer)


def is_sound(store: Store, digest: Digest) -> bool:
    """Whether a file is in the store and unchanged since it was verified."""
    stored = store.files.get(digest)
    return stored is not None and (store.files.is_untouched(stored) or store.files.reverify(stored))


def recall_layer(
    store: Store, plan: LayerPlan, noted: LayerContents, watch: Callable[[int], None]
) -> Found | None:
    """The contents of a layer that an earlier pull finished, if all its files still exist. Rehashes staged files."""
    # Rehashed: staged files aren't synced, so a crash may have lost pages of a file that the journal lists.
    numbers = [number for number, found in noted.files.items() if noted.members[number].size]
    if plan.ranged.keys() == set(numbers) and all(
        store.staged_files.size(plan.layer.digest, number) == file.size
        for number, file in plan.ranged.items()
    ):
        return verify_files(plan, store, watch)
    if all(_is_there(store, plan.layer.digest, n, noted.files[n], watch) for n in numbers):
        return Found(noted)
    return None


def _is_there(
    store: Store, layer: Digest, number: int, file: FileDigests, watch: Callable[[int], None]
) -> bool:
    if is_sound(store, file.digest):
        return True
    if store.staged_files.size(layer, number) is None:
        return False
    return hash_file(store.staged_files.path(layer, number), progress=watch) == file


def _literals(layer: DerivedLayer) -> tuple[bytes, ...] | None:
    """The bytes before, between and after a layer's files, from the parts that its record lists."""
    if layer.parts is None:
        return None
    literals = [b""]
    for part in layer.parts:
        if isinstance(part, str):
            literals.append(b"")
        else:
            literals[-1] += part
    return tuple(literals)
