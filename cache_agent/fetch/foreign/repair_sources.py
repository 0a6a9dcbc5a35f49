"""Sources for the damaged chunks of a foreign image, by the record that was derived on this node.

Uncompressed layers are read in ranges. A compressed layer is read from its beginning up to the chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from cache_agent.fetch.foreign.fetch_plan import ResolvedForeign
from cache_agent.sources.source import ChunkRange, Tier
from cache_agent.sources.streams import chained
from cache_agent.store.values import ImageOrigin
from modelimage.descriptor import Descriptor
from modelimage.errors import NotFound
from modelimage.foreign import DerivedRecord, LayerStream, TarPiece, describe_foreign, open_layer
from modelimage.ranges import ByteRange
from modelimage.repository import BlobStream, ImageReader


@dataclass(frozen=True)
class PassingSource:
    """Files from compressed layers, which can only be read from their beginning."""

    reader: ImageReader
    manifest: Descriptor
    record: DerivedRecord
    name: str
    tier: Tier = Tier.REGISTRY
    authorizes: bool = True

    def open(self, pieces: Sequence[ChunkRange]) -> AbstractContextManager[BlobStream]:
        """See `Source.open`."""
        return chained(pieces, self._open)

    @contextmanager
    def _open(self, piece: ChunkRange) -> Iterator[BlobStream]:
        layer = describe_foreign(self.reader, self.manifest).layer(piece.file.layer)
        with open_layer(self.reader, layer) as stream:
            yield _Cut(stream, self._member(piece), piece.range)

    def _member(self, piece: ChunkRange) -> int:
        known = self.record.layer(piece.file.layer)
        if known is not None and known.contents is not None:
            for number, found in known.contents.files.items():
                if found.digest == piece.file.digest:
                    return number
        raise NotFound(f"the position of {piece.file.path} in its layer is unknown")


def resolve_derived(
    reader: ImageReader, record: DerivedRecord, origin: ImageOrigin
) -> tuple[ResolvedForeign, PassingSource]:
    """What `sources` needs for a cached foreign model, and the source that reads whole layers.

    Raises NotFound, and the reader's errors.
    """
    manifest = reader.resolve(str(origin.manifest))
    layers = tuple(layer.descriptor for layer in record.layers)
    resolved = ResolvedForeign(manifest, manifest, record, layers)
    return resolved, PassingSource(reader, manifest, record, origin.repository)


class _Cut:
    """A byte range of one member, cut out of a layer that is read sequentially."""

    def __init__(self, stream: LayerStream, member: int, wanted: ByteRange) -> None:
        self._stream, self._pieces = stream, iter(stream)
        self._member, self._wanted = member, wanted
        self._held = memoryview(b"")
        self._left = len(wanted)

    def readinto(self, buffer: memoryview, /) -> int:
        while self._left and not self._held:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            if piece.member == self._member:
                self._held = self._overlap(piece)
        count = min(len(buffer), len(self._held))
        buffer[:count] = self._held[:count]
        self._held = self._held[count:]
        self._left -= count
        return count

    def close(self) -> None:
        self._stream.close()

    def _overlap(self, piece: TarPiece) -> memoryview:
        # Empty for a piece before or after the wanted range: then start is past its end, or stop is 0.
        start = max(self._wanted.start - piece.offset, 0)
        return piece.data[start : max(self._wanted.stop - piece.offset, start)]
