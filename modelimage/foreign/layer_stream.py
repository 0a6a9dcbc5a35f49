"""Reads a layer blob once, whatever its packing: yields its files' bytes and verifies its digests.

The bytes must not be trusted before the pass has ended: until then they are unverified.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from typing import Final

from modelimage.digest import Digest
from modelimage.errors import DigestMismatch, InvalidImage
from modelimage.foreign.inflate import GzipInflater, Inflater, ZstdInflater
from modelimage.foreign.limits import Limits
from modelimage.foreign.model import ForeignLayer, Packing
from modelimage.foreign.tarsplit import TarPiece, TarSplitter
from modelimage.foreign.tarwalk import TarMember
from modelimage.repository import BlobStream, ImageReader

_BUFFER: Final = 1 << 20


@contextlib.contextmanager
def open_layer(
    reader: ImageReader,
    layer: ForeignLayer,
    *,
    limits: Limits | None = None,
    progress: Callable[[int], None] | None = None,
) -> Iterator[LayerStream]:
    """Open a layer to iterate over once. `progress` gets counts of blob bytes. Raises any error of the reader."""
    # The whole blob, never ranges: its one digest can be verified only over all bytes.
    with reader.blob(layer.descriptor) as blob:
        yield LayerStream(layer, blob, limits=limits, progress=progress)


class LayerStream:
    """Iterates over the pieces of a layer's files, in the order of the blob.

    Raises InvalidImage for a malformed layer or one beyond the limits, DigestMismatch if the bytes differ from the
    manifest's digest, and any error of the blob's stream. Only after the last piece is the layer verified and `members`
    available. The blob may come from a registry, or from a file that holds the whole blob.
    """

    def __init__(
        self,
        layer: ForeignLayer,
        blob: BlobStream,
        *,
        limits: Limits | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self._layer = layer
        self._blob = blob
        self._limits = limits or Limits()
        self._source = _Checked(layer, blob, progress)
        self._splitter = TarSplitter(self._limits)
        self._members: tuple[TarMember, ...] | None = None

    def path(self, member: int) -> str:
        """The path in the layer of a member whose piece was just given."""
        known = self._layer.members if self._layer.packing is Packing.RAW else None
        return (known or self._splitter.members)[member].path

    @property
    def members(self) -> tuple[TarMember, ...]:
        """The layer's members, available once it was read to its end."""
        if self._members is None:
            raise DigestMismatch(f"layer {self._layer.digest} wasn't read completely")
        return self._members

    def close(self) -> None:
        """Close the blob. May be called from another thread, which ends the iteration with the stream's error."""
        self._blob.close()

    def __iter__(self) -> Iterator[TarPiece]:
        try:
            yield from self._raw() if self._layer.packing is Packing.RAW else self._tar()
        except InvalidImage:
            # Damaged bytes look malformed too: DigestMismatch takes precedence, since another source may be intact.
            self._source.check()
            raise

    def _raw(self) -> Iterator[TarPiece]:
        buffer, offset = memoryview(bytearray(_BUFFER)), 0
        while count := self._source.readinto(buffer):
            yield TarPiece(0, offset, buffer[:count], self._layer.descriptor.size)
            offset += count
        self._source.check()
        # So that an empty file is created, too.
        if not offset:
            yield TarPiece(0, 0, memoryview(b""), 0)
        self._members = self._layer.members

    def _tar(self) -> Iterator[TarPiece]:
        splitter, buffer = self._splitter, memoryview(bytearray(_BUFFER))
        inflater, plain, given = self._inflater(), hashlib.sha256(), 0
        while count := inflater.readinto(buffer):
            given += count
            if self._layer.packing.is_compressed:
                # Checked before the bytes are passed on, so a decompression bomb is stopped before it fills a disk.
                self._limits.check_inflated(self._source.count, given)
                plain.update(buffer[:count])
            yield from splitter.feed(buffer[:count])
        # The digest before the archive's end: a truncated transfer is a DigestMismatch, which another source may cure.
        self._source.check()
        splitter.finish()
        self._check_diff_id(Digest(plain.hexdigest()))
        self._members = tuple(splitter.members)

    def _inflater(self) -> Inflater:
        match self._layer.packing:
            case Packing.TAR_GZIP:
                return GzipInflater(self._source.read)
            case Packing.TAR_ZSTD:
                return ZstdInflater(self._source.read)
            case _:
                return self._source

    def _check_diff_id(self, found: Digest) -> None:
        stated = self._layer.diff_id
        if self._layer.packing.is_compressed and stated is not None and stated != found:
            raise DigestMismatch(
                f"layer {self._layer.digest} decompresses to {found}, but the image states {stated}",
                hint="The image is inconsistent: build and push it again.",
            )


class _Checked:
    """Reads a blob's bytes, counting and hashing them."""

    def __init__(
        self, layer: ForeignLayer, blob: BlobStream, progress: Callable[[int], None] | None
    ) -> None:
        self._layer = layer
        self._blob = blob
        self._progress = progress
        self._hasher = hashlib.sha256()
        self.count = 0

    def readinto(self, buffer: memoryview, /) -> int:
        count = self._blob.readinto(buffer)
        self._hasher.update(buffer[:count])
        self.count += count
        # Checked per read: a registry could send bytes without end.
        if self.count > self._layer.descriptor.size:
            raise self._mismatch("more bytes than its manifest states")
        if self._progress and count:
            self._progress(count)
        return count

    def read(self, size: int) -> bytes:
        buffer = bytearray(size)
        count = self.readinto(memoryview(buffer))
        return bytes(memoryview(buffer)[:count])

    def check(self) -> None:
        """Read the rest, then compare size and digest. Raises DigestMismatch."""
        rest = memoryview(bytearray(64 << 10))
        while self.readinto(rest):
            pass
        if self.count != self._layer.descriptor.size:
            raise self._mismatch(f"{self.count} bytes")
        if self._hasher.hexdigest() != self._layer.digest.hex:
            raise self._mismatch("a different digest")

    def _mismatch(self, what: str) -> DigestMismatch:
        return DigestMismatch(
            f"layer {self._layer.digest} arrived with {what}",
            hint="Try again; if the error persists, the registry's copy is damaged: push the image again.",
        )
