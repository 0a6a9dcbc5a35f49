"""Streams a layer from a source to a destination without storing it on disk, computing digests on the way.

A range requested again is read again, but digested once. If a sender resumes in the middle, because an earlier process
uploaded the beginning, the beginning is read and digested but not returned. One object serves any number of attempts.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Generator, Iterator

from modelimage.digest import Digest
from modelimage.errors import DigestMismatch
from modelimage.hasher import FileHasher, LayerDigests
from modelimage.ranges import ByteRange
from modelimage.recipe import FileSlice, Recipe, Segment

# Yields the bytes of a file slice. Closed when the rest isn't needed.
ReadSlice = Callable[[FileSlice], Iterator[memoryview | bytes]]


class StreamingLayer:
    """One layer being streamed. For one reader at a time; memory is one buffer of the source.

    A read that starts where the last one ended, as for the next chunk of an upload, continues on the same connection.
    """

    def __init__(self, recipe: Recipe, read_slice: ReadSlice) -> None:
        self._recipe = recipe
        self._read_slice = read_slice
        self._layer = hashlib.sha256()
        self._digested = 0
        self._files: dict[str, FileHasher] = {}
        self._stream: Generator[memoryview, None, None] | None = None
        # The last buffer of the stream, and its offset in the blob.
        self._piece, self._start = memoryview(b""), 0

    def read(self, offset: int) -> Generator[memoryview, None, None]:
        """The blob from `offset` on. Raises DigestMismatch if a file is shorter than in the recipe."""
        stream = self._stream_before(offset)
        while True:
            end = self._start + len(self._piece)
            if end > offset:
                yield self._piece[max(0, offset - self._start) :]
                offset = end
            following = self._next(stream)
            if following is None:
                return
            self._piece, self._start = following, end

    def close(self) -> None:
        """Close the connection to the source."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _stream_before(self, offset: int) -> Generator[memoryview, None, None]:
        """The current stream if it is at `offset`, else a new one from the first byte needed, by digests or caller."""
        at_hand = self._start <= offset <= self._start + len(self._piece)
        if self._stream is None or not at_hand:
            self.close()
            # From the first undigested byte if that is earlier: sha256 can't skip what a previous process sent.
            self._piece, self._start = memoryview(b""), min(offset, self._digested)
            self._stream = self._pieces(self._start)
        return self._stream

    def _next(self, stream: Generator[memoryview, None, None]) -> memoryview | None:
        try:
            return next(stream, None)
        # The generator is finished after an exception: the next read must open a new one.
        except BaseException:
            self._stream = None
            raise

    def _pieces(self, position: int) -> Generator[memoryview, None, None]:
        if position >= self._recipe.size:
            return
        for segment in self._recipe.cut(ByteRange(position, self._recipe.size)):
            end = position + len(segment)
            path = segment.file.path if isinstance(segment, FileSlice) else None
            with contextlib.closing(self._segment(segment)) as pieces:
                for piece in pieces:
                    # A source may return more than the slice; the recipe decides where it ends.
                    view = memoryview(piece)[: end - position]
                    self._digest(position, view, path)
                    position += len(view)
                    yield view
            if position != end:
                raise DigestMismatch(
                    f"{path} is {end - position} bytes shorter than listed",
                    hint="The source changed during the build: build again.",
                )

    def _segment(self, segment: Segment) -> Generator[memoryview | bytes, None, None]:
        if isinstance(segment, FileSlice):
            yield from self._read_slice(segment)
        else:
            yield segment.data

    def digests(self) -> LayerDigests:
        """The layer's digests. Raises DigestMismatch unless all bytes have been streamed."""
        if self._digested != self._recipe.size:
            raise DigestMismatch(
                f"only {self._digested} of {self._recipe.size} bytes were streamed"
            )
        files = {path: file.digests() for path, file in self._files.items()}
        return LayerDigests(Digest(self._layer.hexdigest()), files)

    def _digest(self, position: int, view: memoryview, path: str | None) -> None:
        # Bytes read again by a retry are skipped, so that each byte enters the hashes once and in order.
        fresh = view[max(0, self._digested - position) :]
        self._layer.update(fresh)
        self._digested += len(fresh)
        if path is not None:
            self._files.setdefault(path, FileHasher()).update(fresh)
