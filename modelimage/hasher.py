"""Computes all digests of a file in one read: sha256, BLAKE3 per chunk, and the layer's sha256.

A read fills a buffer of `modelimage.hash_pipeline`. Each digest, and the destination if the layer is written at the
same time, consumes it in a thread of its own. Independent of where files come from and where a layer goes.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from modelimage.digest import Digest
from modelimage.durable import reading
from modelimage.errors import InvalidCheckpoint
from modelimage.hash_pipeline import (
    BUFFER_SIZE,
    ChunkHasher,
    ChunkStage,
    FileStage,
    HashPipeline,
    Stage,
)
from modelimage.recipe import FileSlice, LayerFile, Recipe

Progress = Callable[[int], None]
# Consumes all bytes of a buffer; called from one thread, in order.
Sink = Callable[[memoryview], object]


@dataclass(frozen=True, slots=True)
class FileDigests:
    """Digests from one read of a file: its sha256, and the BLAKE3 of each 32 MiB chunk in hex."""

    digest: Digest
    chunks: tuple[str, ...]


EMPTY_FILE: Final = FileDigests(Digest.of(b""), ())


@dataclass(frozen=True, slots=True)
class LayerDigests:
    """A layer blob's digest, and those of its non-empty files by path."""

    digest: Digest
    files: Mapping[str, FileDigests]


class FileHasher:
    """Computes the digests of one file whose bytes arrive in order, in the caller's thread."""

    def __init__(self) -> None:
        self._whole = hashlib.sha256()
        self._chunks = ChunkHasher()

    def update(self, data: memoryview) -> None:
        self._whole.update(data)
        self._chunks.update(data)

    def digests(self) -> FileDigests:
        """The digests; call it after the last byte."""
        return FileDigests(Digest(self._whole.hexdigest()), self._chunks.digests())


def hash_layer(
    recipe: Recipe,
    locate: Callable[[str], Path],
    *,
    sink: Sink | None = None,
    progress: Progress | None = None,
) -> LayerDigests:
    """Compute the digests of a layer of whole files, passing its bytes to `sink` at the same time.

    `locate` returns the local path of a file. The digests in the recipe's files are ignored. `progress` gets the bytes
    read since its last call, and may raise to stop. Raises InvalidCheckpoint when a file changes while it is read,
    NotFound and AccessDenied when it can't be read, and any error of `sink`.
    """
    layer, files, chunks = hashlib.sha256(), FileStage(), ChunkStage()
    stages: list[Stage] = [lambda block: layer.update(block.data), files, chunks]
    if sink is not None:
        stages.append(lambda block: sink(block.data))
    with HashPipeline(stages) as pipeline:
        for segment in recipe.segments:
            if isinstance(segment, FileSlice):
                _read_file(locate(segment.file.path), segment.file, pipeline, progress)
            else:
                pipeline.put(memoryview(segment.data))
    return LayerDigests(
        Digest(layer.hexdigest()),
        _file_digests(files, chunks),
    )


@dataclass(frozen=True, slots=True)
class StreamDigests:
    """Digests of a blob read from a stream.

    `files` has the digests of the files at the recipe's positions; `follows_recipe` is whether length, tar headers and
    padding match the recipe.
    """

    digest: Digest
    files: Mapping[str, FileDigests]
    follows_recipe: bool


def hash_stream(
    recipe: Recipe,
    read: Callable[[memoryview], int],
    *,
    progress: Progress | None = None,
) -> StreamDigests:
    """Compute the digests of a layer blob from a stream, and of its files according to the recipe.

    `read` fills part of a buffer and returns the count, 0 at the end. The stream is digested to its end whatever it
    contains; comparing digests is up to the caller. Raises any error of `read`.
    """
    layer, files, chunks = hashlib.sha256(), FileStage(), ChunkStage()
    with HashPipeline([lambda block: layer.update(block.data), files, chunks]) as pipeline:
        stream = _Stream(read, pipeline, progress)
        for segment in recipe.segments:
            if isinstance(segment, FileSlice):
                stream.take_file(segment.file.path, len(segment))
            else:
                stream.take_literal(segment.data)
        stream.take_rest()
    return StreamDigests(
        Digest(layer.hexdigest()),
        _file_digests(files, chunks),
        stream.follows_recipe,
    )


def _file_digests(files: FileStage, chunks: ChunkStage) -> dict[str, FileDigests]:
    return {
        path: FileDigests(digest, chunks.digests(path)) for path, digest in files.digests.items()
    }


def hash_file(path: Path, *, progress: Progress | None = None) -> FileDigests:
    """Compute the digests of one file. Raises the same errors as `hash_layer`."""
    size = regular_file_size(path)
    # The stages learn of a file by its first block, and this one has none.
    if size == 0:
        return EMPTY_FILE
    name = str(path)
    files, chunks = FileStage(), ChunkStage()
    with HashPipeline([files, chunks]) as pipeline:
        _read_file(path, LayerFile(name, size, EMPTY_FILE.digest), pipeline, progress)
    return FileDigests(files.digests[name], chunks.digests(name))


def regular_file_size(path: Path) -> int:
    """The size of a regular file in bytes. Raises NotFound, AccessDenied, and InvalidCheckpoint for other kinds."""
    with reading(path):
        status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise InvalidCheckpoint(f"{path} is not a regular file")
    return status.st_size


class _Stream:
    """Splits a stream into the recipe's segments and records whether it deviates from them."""

    def __init__(
        self, read: Callable[[memoryview], int], pipeline: HashPipeline, progress: Progress | None
    ) -> None:
        self._read = read
        self._pipeline = pipeline
        self._progress = progress
        self._ended = False
        self.follows_recipe = True

    def take_file(self, path: str, size: int) -> None:
        for offset in range(0, size, BUFFER_SIZE):
            self._take(min(BUFFER_SIZE, size - offset), path)

    def take_literal(self, expected: bytes) -> None:
        if bytes(self._take(len(expected), None)) != expected:
            self.follows_recipe = False

    def take_rest(self) -> None:
        """Consume the bytes after the last segment; there should be none."""
        # Digested all the same: the blob's digest must cover every byte, or appended data would go unnoticed.
        complete = not self._ended
        while len(self._take(BUFFER_SIZE, None)):
            complete = False
        self.follows_recipe = self.follows_recipe and complete

    def _take(self, wanted: int, path: str | None) -> memoryview:
        """Read up to `wanted` bytes and pass them to the stages; fewer only at the end of the stream."""
        if self._ended:
            return memoryview(b"")
        buffer = self._pipeline.buffer(wanted)
        view = memoryview(buffer)[:wanted]
        count = fill(view, self._read)
        self._ended = count < wanted
        if count:
            self._pipeline.put(view[:count], path=path, buffer=buffer)
            if self._progress is not None:
                self._progress(count)
        return view[:count]


def _read_file(
    path: Path, file: LayerFile, pipeline: HashPipeline, progress: Progress | None
) -> None:
    # One descriptor from start to end: whoever replaces the path meanwhile doesn't mix two files' bytes.
    with reading(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        before = _state(descriptor, path)
        left = file.size
        for buffer, view in _buffers(descriptor, path, file.size, pipeline):
            left -= len(view)
            pipeline.put(view, path=file.path, buffer=buffer)
            if progress is not None:
                progress(len(view))
        # Size and mtime are compared on the open descriptor, so replacing the path doesn't matter, but a write does.
        if left or before[0] != file.size or _state(descriptor, path) != before:
            raise InvalidCheckpoint(
                f"{path} changed while it was read",
                hint="Wait until the checkpoint is complete, then try again.",
            )
    finally:
        os.close(descriptor)


def _buffers(
    descriptor: int, path: Path, size: int, pipeline: HashPipeline
) -> Iterator[tuple[bytearray, memoryview]]:
    """Read up to `size` bytes, filling every buffer except the file's last."""
    # Doubles the kernel's readahead, which else is too short for a disk that needs many requests at once. macOS lacks
    # it.
    if hasattr(os, "posix_fadvise"):
        with reading(path):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    for offset in range(0, size, BUFFER_SIZE):
        wanted = min(BUFFER_SIZE, size - offset)
        buffer = pipeline.buffer(wanted)
        view = memoryview(buffer)[:wanted]
        with reading(path):
            # readv reads into the buffer itself: `read` would make a copy of every byte.
            count = fill(view, lambda rest: os.readv(descriptor, [rest]))
        if count:
            yield buffer, view[:count]
        if count < wanted:
            return


def fill(view: memoryview, read: Callable[[memoryview], int]) -> int:
    """Read until the view is full or the source ends; returns the bytes read."""
    count = 0
    while count < len(view) and (got := read(view[count:])):
        count += got
    return count


def _state(descriptor: int, path: Path) -> tuple[int, int]:
    with reading(path):
        status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns
