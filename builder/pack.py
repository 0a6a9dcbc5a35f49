"""From planned layers to digests: each file is read once, and a layer for a local layout is written on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from builder.plan import PlannedLayer
from builder.remembered import RememberedDigests
from builder.workers import available_cores, run_all
from modelimage import mediatypes
from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.hashing import EMPTY_FILE, LayerDigests, hash_layer
from modelimage.layout import Layout
from modelimage.record import RecordFile, RecordLayer

# One file keeps about three cores busy: two sha256, one BLAKE3, the reading and the writing.
_CORES_PER_LAYER = 3
_MOST_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class PackedLayer:
    """A layer whose digests are known, its files as the record lists them, and whether its bytes were read for it."""

    plan: PlannedLayer
    layer: RecordLayer
    files: tuple[RecordFile, ...]
    remembered: bool


@dataclass(frozen=True, slots=True)
class Packer:
    """Makes layers known, and where `layout` is given, stored in the same pass.

    `locations` says where each path's file is.
    """

    locations: Mapping[str, Path]
    remembered: RememberedDigests
    layout: Layout | None = None

    def pack(
        self, layers: Sequence[PlannedLayer], advance: Callable[[int], None]
    ) -> list[PackedLayer]:
        """All layers, in order; `advance` gets bytes of the files that are read.

        Raises InvalidCheckpoint when a file changes meanwhile, NotFound, AccessDenied, NoSpace, NotWritable.
        """
        workers = max(1, min(_MOST_AT_ONCE, available_cores() // _CORES_PER_LAYER))
        return run_all(layers, self._pack, advance=advance, workers=workers)

    def missing(self, layers: Sequence[PlannedLayer]) -> list[PlannedLayer]:
        """The layers that packing would have to write."""
        return [layer for layer in layers if self._known(layer, self._key(layer)) is None]

    def _key(self, layer: PlannedLayer) -> str | None:
        return self.remembered.key(layer, self.locations)

    def _known(self, layer: PlannedLayer, key: str | None) -> LayerDigests | None:
        """The digests of a layer that need not be read again: known, and stored where it has to be."""
        known = self.remembered.recall(key) if key else None
        return known if known is not None and self._is_stored(layer, known.digest) else None

    def _pack(self, layer: PlannedLayer, advance: Callable[[int], None]) -> PackedLayer:
        key = self._key(layer)
        known = self._known(layer, key)
        if known is not None:
            return _packed(layer, known, remembered=True)
        digests = self._read(layer, advance)
        if key:
            self.remembered.remember(key, digests)
        return _packed(layer, digests, remembered=False)

    def _is_stored(self, layer: PlannedLayer, digest: Digest) -> bool:
        descriptor = Descriptor(mediatypes.OCI_LAYER_TAR, digest, layer.size)
        return self.layout is None or self.layout.has_blob(descriptor)

    def _read(self, layer: PlannedLayer, advance: Callable[[int], None]) -> LayerDigests:
        locate = self.locations.__getitem__
        if self.layout is None:
            return hash_layer(layer.recipe, locate, progress=advance)
        with self.layout.ingest() as ingest:
            digests = hash_layer(layer.recipe, locate, sink=ingest.write, progress=advance)
            ingest.commit(digests.digest)
        return digests


def _packed(layer: PlannedLayer, digests: LayerDigests, *, remembered: bool) -> PackedLayer:
    files = []
    for file in layer.files:
        known = digests.files[file.path] if file.size else EMPTY_FILE
        files.append(
            RecordFile(
                path=file.path,
                size=file.size,
                digest=known.digest,
                role=file.role,
                layer=digests.digest,
                chunks=known.chunks,
            )
        )
    record_layer = RecordLayer(digests.digest, layer.size, layer.role)
    return PackedLayer(layer, record_layer, tuple(files), remembered)
