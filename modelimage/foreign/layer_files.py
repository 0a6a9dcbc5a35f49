"""Determines a tar layer's packing by its first bytes, and lists an uncompressed one by its headers alone.

The read window grows while headers are close together and shrinks after a jump, so a layer of one large file costs two
requests, and a layer of many small files few.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from modelimage.descriptor import Descriptor
from modelimage.errors import InvalidImage, RemoteRefused
from modelimage.foreign.first_bytes import packing_of
from modelimage.foreign.layer_values import check_diff_id
from modelimage.foreign.limits import Limits
from modelimage.foreign.model import ForeignLayer
from modelimage.foreign.tarwalk import TarMember, TarWalk
from modelimage.hasher import fill
from modelimage.ranges import ByteRange
from modelimage.repository import ImageReader
from modelimage.tar import BLOCK

_WINDOW: Final = 16 << 10
_MAX_WINDOW: Final = 4 << 20


def list_layer(reader: ImageReader, layer: ForeignLayer, limits: Limits) -> ForeignLayer:
    """The layer as its bytes are packed, and an uncompressed one with its members and, if not too large, its literals.

    Reads only headers and verifies no digest: the layer is verified together with its files. A compressed layer stays
    unlisted until it is read. Raises InvalidImage, and any error of the reader.
    """
    blob = _Window(reader, layer.descriptor)
    packing = packing_of(blob.read(ByteRange(0, min(BLOCK, blob.size)))) or layer.packing
    layer = replace(layer, packing=packing)
    if packing.is_compressed:
        return layer
    check_diff_id(layer.descriptor, layer.diff_id)
    walk, members, gaps = TarWalk(), list[TarMember](), _Gaps(blob, limits.literal_bytes)
    while (wanted := walk.wanted) is not None and wanted.start < blob.size:
        if wanted.stop > blob.size:
            raise InvalidImage(f"layer {layer.digest} ends in the middle of a tar")
        member = walk.feed(gaps.read(wanted.stop)[-len(wanted) :])
        if member is None:
            continue
        # Checked for each member: the headers of a hostile tar could go on without end.
        limits.check_members(len(members) + 1)
        limits.check_size(member.path, member.size)
        members.append(member)
        if member.size:
            gaps.skip(member.stop)
    # The trailer may be missing, but an archive cut inside a member or header must not pass as a shorter one.
    walk.finish(blob.size)
    return replace(layer, members=tuple(members), literals=gaps.finish())


class _Window:
    """Reads ranges of a blob, through a buffer of the last range."""

    def __init__(self, reader: ImageReader, descriptor: Descriptor) -> None:
        self._reader = reader
        self._descriptor = descriptor
        self.size = descriptor.size
        self._start = 0
        self._data = b""
        self._length = _WINDOW

    def read(self, wanted: ByteRange) -> bytes:
        stop = self._start + len(self._data)
        # Most headers are in the last read: a request for each would cost a round trip per 512 bytes.
        if not self._start <= wanted.start <= wanted.stop <= stop:
            # Only a request close behind the last one doubles the window: headers are dense there.
            near = wanted.start <= stop + self._length and wanted.start >= self._start
            self._length = min(2 * self._length, _MAX_WINDOW) if near else _WINDOW
            self._fetch(ByteRange(wanted.start, max(wanted.stop, self._ahead(wanted.start))))
        return self._data[wanted.start - self._start : wanted.stop - self._start]

    def _ahead(self, start: int) -> int:
        return min(self.size, start + self._length)

    def _fetch(self, wanted: ByteRange) -> None:
        data = bytearray(len(wanted))
        with self._reader.blob(self._descriptor, wanted) as stream:
            filled = fill(memoryview(data), stream.readinto)
        if filled != len(data):
            raise RemoteRefused(f"a range of blob {self._descriptor.digest} is incomplete")
        self._start, self._data = wanted.start, bytes(data)


class _Gaps:
    """Reads the bytes before, between and after the files' data, and keeps them unless they exceed a bound."""

    def __init__(self, blob: _Window, bound: int) -> None:
        self._blob = blob
        self._bound = bound
        self._literals: list[bytes] = []
        self._current = bytearray()
        self._position = 0
        # Still counted when no longer kept: `finish` must see that the bound was exceeded.
        self._total = 0

    def read(self, stop: int) -> bytes:
        """The bytes from the current position to `stop`."""
        data = self._blob.read(ByteRange(self._position, stop))
        self._position = stop
        self._total += len(data)
        if self._total <= self._bound:
            self._current += data
        return data

    def skip(self, stop: int) -> None:
        """Skip a file's data, which ends at `stop`."""
        self._literals.append(bytes(self._current))
        self._current.clear()
        self._position = stop

    def finish(self) -> tuple[bytes, ...] | None:
        """The literals, the last one up to the blob's end; None if they exceed the bound."""
        rest = self._blob.size - self._position
        if self._total + rest > self._bound:
            return None
        if rest:
            self.read(self._blob.size)
        return (*self._literals, bytes(self._current))
