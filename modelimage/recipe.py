"""Recipes describe how a layer blob is built from weight files, so that any range of it can be rebuilt.

A layer is tar headers, file bytes, zero padding and a trailer. The store keeps only the files; a recipe lists which
bytes of the blob are literals and which are slices of a file. Pure: it never opens a file.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate

from modelimage import tar
from modelimage.digest import Digest
from modelimage.errors import InvalidInput
from modelimage.path_rules import MODELS_LINK, parents
from modelimage.ranges import ByteRange
from modelimage.tar import EntryKind, TarEntry


@dataclass(frozen=True, slots=True)
class LayerFile:
    """A file in a layer."""

    path: str
    size: int
    digest: Digest


@dataclass(frozen=True, slots=True)
class Literal:
    """Bytes of the blob that don't come from a file."""

    data: bytes

    def __len__(self) -> int:
        return len(self.data)

    def cut(self, start: int, stop: int) -> Literal:
        return Literal(self.data[start:stop])


@dataclass(frozen=True, slots=True)
class FileSlice:
    """Bytes `start` up to but excluding `stop` of a file."""

    file: LayerFile
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def cut(self, start: int, stop: int) -> FileSlice:
        return FileSlice(self.file, self.start + start, self.start + stop)


Segment = Literal | FileSlice


@dataclass(frozen=True, slots=True)
class Recipe:
    """The segments of a layer blob in order; `size` is the blob's size in bytes.

    Law: the concatenation of `cut(r)` over any partition of the blob into ranges is the blob.
    """

    segments: tuple[Segment, ...]
    offsets: tuple[int, ...]
    size: int

    @classmethod
    def from_segments(cls, segments: Iterable[Segment]) -> Recipe:
        # Without empty segments the offsets are strictly increasing, as the search in `cut` requires.
        kept = tuple(segment for segment in segments if len(segment))
        ends = tuple(accumulate(len(segment) for segment in kept))
        return cls(kept, (0, *ends[:-1])[: len(ends)], ends[-1] if ends else 0)

    def cut(self, wanted: ByteRange) -> Iterator[Segment]:
        """The segments of a range of the blob. Raises InvalidInput for a range outside the blob."""
        if wanted.stop > self.size:
            raise InvalidInput(
                f"range {wanted.start}-{wanted.stop} is outside of {self.size} bytes"
            )
        # Searched, not walked: a layer has thousands of segments, and each chunk of an upload cuts again.
        index = bisect_right(self.offsets, wanted.start) - 1
        while index < len(self.segments) and self.offsets[index] < wanted.stop:
            segment, offset = self.segments[index], self.offsets[index]
            start, stop = max(0, wanted.start - offset), min(len(segment), wanted.stop - offset)
            yield segment.cut(start, stop)
            index += 1

    def files(self) -> dict[str, ByteRange]:
        """The byte range of each non-empty file in the blob, by path."""
        return {
            segment.file.path: ByteRange(offset, offset + len(segment))
            for segment, offset in zip(self.segments, self.offsets, strict=True)
            if isinstance(segment, FileSlice)
        }


def layer_recipe(files: Iterable[LayerFile]) -> Recipe:
    """The recipe of a layer with exactly these files: sorted by path, with entries for parent directories."""
    # Sorted here: the blob's bytes, and so its digest, must not depend on the caller's order.
    return Recipe.from_segments(_layer_segments(sorted(files, key=lambda file: file.path)))


def models_link_layer() -> bytes:
    """The tiny layer with the link `models -> .`; its bytes are the same in every image."""
    link = TarEntry(MODELS_LINK, EntryKind.SYMLINK, target=".")
    return tar.header(link) + tar.TRAILER


def single_file_layer(path: str, data: bytes) -> bytes:
    """A layer with one small file, in memory."""
    entry = TarEntry(path, EntryKind.FILE, len(data))
    return tar.header(entry) + data + bytes(tar.padding(len(data))) + tar.TRAILER


def _layer_segments(files: list[LayerFile]) -> Iterator[Segment]:
    literal = bytearray()
    made: set[str] = set()
    for file in files:
        for parent in parents(file.path):
            if parent not in made:
                made.add(parent)
                literal += tar.header(TarEntry(parent, EntryKind.DIRECTORY))
        literal += tar.header(TarEntry(file.path, EntryKind.FILE, file.size))
        if file.size:
            yield Literal(bytes(literal))
            yield FileSlice(file, 0, file.size)
            # Padding joins the next header in one literal: fewer segments, and one read instead of two.
            literal = bytearray(tar.padding(file.size))
    yield Literal(bytes(literal) + tar.TRAILER)
