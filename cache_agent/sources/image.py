"""The registry tier: reads files from the layers of an image, in a registry or a layout directory.

Small files close to each other in one layer are read with one ranged request; the tar headers between them are skipped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

from cache_agent.sources.source import ChunkRange, Layered, Tier
from cache_agent.sources.streams import joined
from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.errors import InvalidImage, NotFound, Unreachable
from modelimage.ranges import ByteRange
from modelimage.repository import BlobStream, ImageReader

_SKIP_BUFFER = 64 << 10


class _PieceStream:
    """A stream over a range of a layer that returns only the wanted parts of it, in order."""

    def __init__(self, stream: BlobStream, wanted: Sequence[ByteRange]) -> None:
        self._stream = stream
        self._wanted = list(reversed(wanted))
        self._position = wanted[0].start

    def readinto(self, buffer: memoryview, /) -> int:
        while self._wanted and self._position == self._wanted[-1].stop:
            self._wanted.pop()
        if not self._wanted:
            return 0
        current = self._wanted[-1]
        self._skip(max(0, current.start - self._position))
        count = self._stream.readinto(buffer[: current.stop - self._position])
        self._position += count
        return count

    def close(self) -> None:
        self._stream.close()

    def _skip(self, size: int) -> None:
        waste = memoryview(bytearray(min(size, _SKIP_BUFFER)))
        while size > 0:
            count = self._stream.readinto(waste[:size])
            if count == 0:
                raise Unreachable("the layer ended before the file that it should hold")
            size -= count
            self._position += count


@dataclass(frozen=True)
class ImageSource:
    """One image in one repository. `layers` are the manifest's. Raises InvalidImage if the record names another one."""

    reader: ImageReader
    record: Layered
    layers: Sequence[Descriptor]
    name: str
    tier: Tier = Tier.REGISTRY
    authorizes: bool = True
    _by_digest: dict[Digest, Descriptor] = field(init=False, default_factory=dict)
    _places: dict[Digest, dict[str, ByteRange]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._by_digest.update({layer.digest: layer for layer in self.layers})
        # The manifest is the authority: a record must not choose other blobs of the repository.
        for layer in self.record.layers:
            if layer.digest not in self._by_digest:
                raise InvalidImage(
                    f"the record names a layer {layer.digest} that its manifest doesn't list",
                    hint="Build and push the image again.",
                )
            recipe = self.record.recipe(layer.digest)
            if recipe is not None:
                self._places[layer.digest] = recipe.files()

    def open(self, pieces: Sequence[ChunkRange]) -> AbstractContextManager[BlobStream]:
        """See `Source.open`."""
        layer = self._by_digest[pieces[0].file.layer]
        if layer.digest not in self._places:
            raise NotFound(f"layer {layer.digest} can only be read from its beginning")
        wanted = [self._in_layer(piece) for piece in joined(pieces)]
        # One range over all files: skipping the headers between them costs less than a request each.
        span = ByteRange(wanted[0].start, wanted[-1].stop)
        if len(wanted) == 1:
            return self.reader.blob(layer, span)
        return self._cut(layer, span, wanted)

    @contextmanager
    def _cut(
        self, layer: Descriptor, span: ByteRange, wanted: Sequence[ByteRange]
    ) -> Iterator[BlobStream]:
        with self.reader.blob(layer, span) as stream:
            yield _PieceStream(stream, wanted)

    def _in_layer(self, piece: ChunkRange) -> ByteRange:
        start = self._places[piece.file.layer][piece.file.path].start
        return ByteRange(start + piece.range.start, start + piece.range.stop)
