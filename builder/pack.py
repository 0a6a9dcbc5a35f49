"""Computes layer digests, reading each file once; for a local layout, layers are written at the same time.

Layers whose files stayed at their source are streamed: digested while they are sent, and never stored here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from builder.collect import CollectedCheckpoint
from builder.digest_cache import DigestCache
from builder.layer_plan import PlannedLayer
from builder.publish import LayerSource
from builder.source_digests import check_claims
from modelimage import canonical, mediatypes
from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.errors import InvalidInput
from modelimage.hasher import EMPTY_FILE, LayerDigests, hash_layer
from modelimage.layer_source import StreamingLayer
from modelimage.layout import Layout
from modelimage.record import RecordFile, RecordLayer
from modelimage.repository import StreamedContent, StreamedWriter
from modelimage.spans import span
from modelimage.stage_workers import available_cores, run_all

# One file keeps about three cores busy: two sha256, one BLAKE3, reading and writing.
_CORES_PER_LAYER = 3
_MOST_AT_ONCE = 8
_STREAMS_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class PackedLayer:
    """A layer with known digests, and its files as listed in the record. `remembered`: the digests were cached.

    `streamed`: the destination received the layer in the same pass.
    """

    plan: PlannedLayer
    layer: RecordLayer
    files: tuple[RecordFile, ...]
    remembered: bool
    streamed: bool = False


@dataclass(frozen=True, slots=True)
class Packer:
    """Computes the digests of a checkpoint's layers, and stores the layers in the same pass if possible.

    `layout` receives every layer; `streamed` receives those with files that stayed at their source.
    """

    checkpoint: CollectedCheckpoint
    remembered: DigestCache
    layout: Layout | None = None
    streamed: StreamedWriter | None = None

    def pack(
        self, layers: Sequence[PlannedLayer], advance: Callable[[int], None]
    ) -> list[PackedLayer]:
        """Pack all layers, in order; `advance` gets bytes of the files that are read.

        Raises InvalidCheckpoint when a file changes meanwhile, NotFound, AccessDenied, NoSpace, NotWritable.
        """
        workers = max(1, min(_MOST_AT_ONCE, available_cores() // _CORES_PER_LAYER))
        if self.checkpoint.remote:
            # Streamed layers wait for the network, not for cores.
            workers = max(workers, _STREAMS_AT_ONCE)
        return run_all(layers, self._pack, advance=advance, workers=workers)

    def missing(self, layers: Sequence[PlannedLayer]) -> list[PlannedLayer]:
        """The layers that packing would have to write."""
        return [layer for layer in layers if self._known(layer, self._key(layer)) is None]

    def _key(self, layer: PlannedLayer) -> str | None:
        return self.remembered.key(layer, self.checkpoint.locations, self.checkpoint.remote)

    def _known(self, layer: PlannedLayer, key: str | None) -> LayerDigests | None:
        """The digests of a layer that need not be read again: cached, and stored if the destination needs it."""
        known = self.remembered.recall(key) if key else None
        return known if known is not None and self._is_stored(layer, known.digest) else None

    def _pack(self, layer: PlannedLayer, advance: Callable[[int], None]) -> PackedLayer:
        # Before reading: the cache key must describe the files as they were when reading began.
        key = self._key(layer)
        known = self._known(layer, key)
        if known is not None:
            return _packed(layer, known, remembered=True)
        away = any(file.path in self.checkpoint.remote for file in layer.files)
        read = self._stream if away else self._read
        with span("stream" if away else "hash", size=layer.size):
            digests = read(layer, advance)
        # Under the key from before the read, and only once the whole layer is stored.
        if key:
            self.remembered.remember(key, digests)
        return _packed(layer, digests, remembered=False, streamed=away)

    def _is_stored(self, layer: PlannedLayer, digest: Digest) -> bool:
        # For a layout, known digests aren't enough: it needs the bytes as well.
        descriptor = Descriptor(mediatypes.OCI_LAYER_TAR, digest, layer.size)
        return self.layout is None or self.layout.has_blob(descriptor)

    def _read(self, layer: PlannedLayer, advance: Callable[[int], None]) -> LayerDigests:
        locate = self.checkpoint.locations.__getitem__
        if self.layout is None:
            return hash_layer(layer.recipe, locate, progress=advance)
        # Written while it is hashed: a second pass over hundreds of gigabytes would double the build's time.
        with self.layout.ingest() as ingest:
            digests = hash_layer(layer.recipe, locate, sink=ingest.write, progress=advance)
            ingest.commit(digests.digest)
        return digests

    def _stream(self, layer: PlannedLayer, advance: Callable[[int], None]) -> LayerDigests:
        """Send a layer while computing its digests, which are compared with the source's before it is committed."""
        checkpoint, recipe = self.checkpoint, layer.recipe
        source = LayerSource(recipe, checkpoint.locations, checkpoint.remote)
        stream = StreamingLayer(recipe, source.read_slice)

        # Called after the last byte, before the blob gets its name: a wrong file is never stored.
        def digest() -> Digest:
            found = stream.digests()
            check_claims(_packed(layer, found).files, checkpoint.claimed)
            return found.digest

        if self.streamed is None:
            raise InvalidInput(
                "the destination doesn't accept streamed layers", hint="Add --stage."
            )
        # A name for bytes without a digest: the state of an interrupted upload is stored under it.
        content = StreamedContent(self._name(layer), recipe.size, stream.read, digest)
        with contextlib.closing(stream):
            self.streamed.put_streamed(content, advance)
        return stream.digests()

    def _name(self, layer: PlannedLayer) -> str:
        """A name for the layer's bytes that is the same in other processes, to resume the upload."""
        remote, files = self.checkpoint.remote, layer.files
        parts = [
            [f.path, f.size, remote[f.path].identity if f.path in remote else ""] for f in files
        ]
        return f"streamed-{Digest.of(canonical.to_bytes(parts)).hex}"


def _packed(
    layer: PlannedLayer, digests: LayerDigests, *, remembered: bool = False, streamed: bool = False
) -> PackedLayer:
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
    return PackedLayer(layer, record_layer, tuple(files), remembered, streamed)
