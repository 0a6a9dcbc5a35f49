"""Computes all digests of a file in one read: sha256, BLAKE3 per chunk, and the layer's sha256.

A read fills a buffer. Each digest, and the destination if the layer is written at the same time, consumes it in a
thread of its own: hashlib, blake3 and file writes release the GIL, so one big file uses several cores. A buffer is
reused once all stages have consumed it, so memory is bounded by the ring, not by the file. Independent of where files
come from and where a layer goes.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Final

from blake3 import blake3

from modelimage.digest import Digest
from modelimage.durable import reading
from modelimage.errors import InvalidCheckpoint
from modelimage.recipe import FileSlice, LayerFile, Recipe
from modelimage.record import CHUNK_SIZE

# A chunk is a whole number of buffers, so no buffer spans two chunks.
BUFFER_SIZE: Final = 2 << 20
# Enough for stages to work on different buffers while the reader fills others: 16 MiB per layer.
RING_BUFFERS: Final = 8

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


class _ChunkHasher:
    """Computes the BLAKE3 of each chunk of one file whose bytes arrive in order."""

    def __init__(self) -> None:
        self._chunk = blake3()
        self._filled = 0
        self._done: list[str] = []

    def update(self, data: memoryview) -> None:
        while data:
            part = data[: CHUNK_SIZE - self._filled]
            self._chunk.update(part)
            self._filled += len(part)
            data = data[len(part) :]
            if self._filled == CHUNK_SIZE:
                self._end_chunk()

    def digests(self) -> tuple[str, ...]:
        if self._filled:
            self._end_chunk()
        return tuple(self._done)

    def _end_chunk(self) -> None:
        self._done.append(self._chunk.hexdigest())
        self._chunk, self._filled = blake3(), 0


class FileHasher:
    """Computes the digests of one file whose bytes arrive in order, in the caller's thread."""

    def __init__(self) -> None:
        self._whole = hashlib.sha256()
        self._chunks = _ChunkHasher()

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
    layer, files, chunks = hashlib.sha256(), _FileStage(), _ChunkStage()
    stages: list[_Stage] = [lambda block: layer.update(block.data), files, chunks]
    if sink is not None:
        stages.append(lambda block: sink(block.data))
    with _HashPipeline(stages) as pipeline:
        for segment in recipe.segments:
            if isinstance(segment, FileSlice):
                _read_file(locate(segment.file.path), segment.file, pipeline, progress)
            else:
                pipeline.put(memoryview(segment.data))
    return LayerDigests(
        Digest(layer.hexdigest()),
        {path: FileDigests(digest, chunks.digests(path)) for path, digest in files.digests.items()},
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
    layer, files, chunks = hashlib.sha256(), _FileStage(), _ChunkStage()
    with _HashPipeline([lambda block: layer.update(block.data), files, chunks]) as pipeline:
        stream = _Stream(read, pipeline, progress)
        for segment in recipe.segments:
            if isinstance(segment, FileSlice):
                stream.take_file(segment.file.path, len(segment))
            else:
                stream.take_literal(segment.data)
        stream.take_rest()
    return StreamDigests(
        Digest(layer.hexdigest()),
        {path: FileDigests(digest, chunks.digests(path)) for path, digest in files.digests.items()},
        stream.follows_recipe,
    )


def hash_file(path: Path, *, progress: Progress | None = None) -> FileDigests:
    """Compute the digests of one file. Raises the same errors as `hash_layer`."""
    size = regular_file_size(path)
    if size == 0:
        return EMPTY_FILE
    name = str(path)
    files, chunks = _FileStage(), _ChunkStage()
    with _HashPipeline([files, chunks]) as pipeline:
        _read_file(path, LayerFile(name, size, EMPTY_FILE.digest), pipeline, progress)
    return FileDigests(files.digests[name], chunks.digests(name))


def regular_file_size(path: Path) -> int:
    """The size of a regular file in bytes. Raises NotFound, AccessDenied, and InvalidCheckpoint for other kinds."""
    with reading(path):
        status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise InvalidCheckpoint(f"{path} is not a regular file")
    return status.st_size


@dataclass(slots=True)
class _Block:
    """Bytes to be consumed by the stages. `path`: the file they belong to, None for tar headers and padding."""

    data: memoryview
    path: str | None
    buffer: bytearray | None
    stages_left: int


_Stage = Callable[[_Block], object]


class _FileStage:
    """Computes the sha256 of each file in the stream."""

    def __init__(self) -> None:
        self.hashers: dict[str, hashlib._Hash] = {}

    def __call__(self, block: _Block) -> None:
        if block.path is not None:
            hasher = self.hashers.setdefault(block.path, hashlib.sha256())
            hasher.update(block.data)

    @property
    def digests(self) -> dict[str, Digest]:
        return {path: Digest(hasher.hexdigest()) for path, hasher in self.hashers.items()}


class _ChunkStage:
    """Computes the BLAKE3 of each chunk of each file in the stream."""

    def __init__(self) -> None:
        self._hashers: dict[str, _ChunkHasher] = {}

    def __call__(self, block: _Block) -> None:
        if block.path is not None:
            self._hashers.setdefault(block.path, _ChunkHasher()).update(block.data)

    def digests(self, path: str) -> tuple[str, ...]:
        """The chunk digests of a file whose bytes have all been consumed."""
        return self._hashers[path].digests()


class _HashPipeline:
    """A ring of buffers: one reader fills them, and one thread per stage consumes them in order.

    A failing stage stops computing; the reader notices at its next step, and leaving the context raises the error.
    """

    def __init__(self, stages: Sequence[_Stage]) -> None:
        self._queues: list[SimpleQueue[_Block | None]] = [SimpleQueue() for _ in stages]
        # Daemon threads: a stage that is blocked in a write must not keep the process from exiting.
        self._threads = [
            threading.Thread(target=self._run, args=(stage, queue), daemon=True)
            for stage, queue in zip(stages, self._queues, strict=True)
        ]
        self._free: SimpleQueue[bytearray] = SimpleQueue()
        self._unmade = RING_BUFFERS
        self._lock = threading.Lock()
        self._failure: BaseException | None = None

    def __enter__(self) -> _HashPipeline:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        # The threads are joined on every path: a sink must not be called after its caller has moved on.
        if error is not None:
            self._fail(error)
        for queue in self._queues:
            queue.put(None)
        for thread in self._threads:
            thread.join()
        if error is None:
            self.check()

    def check(self) -> None:
        """Raise the error of a failed stage."""
        if self._failure is not None:
            raise self._failure

    def buffer(self, size: int) -> bytearray:
        """A buffer that no stage uses any more, or a new one while the ring isn't complete."""
        self.check()
        # A file's last, short read gets a buffer outside the ring, so that all buffers in it have one size.
        if size < BUFFER_SIZE:
            return bytearray(size)
        # Buffers are made on demand: a small file never allocates the whole ring.
        if self._unmade and self._free.empty():
            self._unmade -= 1
            return bytearray(BUFFER_SIZE)
        return self._free.get()

    def put(
        self, data: memoryview, *, path: str | None = None, buffer: bytearray | None = None
    ) -> None:
        self.check()
        block = _Block(data, path, buffer, len(self._queues))
        for queue in self._queues:
            queue.put(block)

    def _run(self, stage: _Stage, queue: SimpleQueue[_Block | None]) -> None:
        while (block := queue.get()) is not None:
            # After a failure, blocks are still taken and released: a reader waiting for a buffer would hang otherwise.
            if self._failure is None:
                try:
                    stage(block)
                except BaseException as error:  # noqa: BLE001 (raised again in the reader's thread)
                    self._fail(error)
            self._release(block)

    def _release(self, block: _Block) -> None:
        # Under the lock: several stages release the same block concurrently.
        with self._lock:
            block.stages_left -= 1
            last = block.stages_left == 0
        if last and block.buffer is not None and len(block.buffer) == BUFFER_SIZE:
            self._free.put(block.buffer)

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            # The first failure is the cause; later ones are usually its consequences.
            self._failure = self._failure or error


class _Stream:
    """Splits a stream into the recipe's segments and records whether it deviates from them."""

    def __init__(
        self, read: Callable[[memoryview], int], pipeline: _HashPipeline, progress: Progress | None
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
    path: Path, file: LayerFile, pipeline: _HashPipeline, progress: Progress | None
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
    descriptor: int, path: Path, size: int, pipeline: _HashPipeline
) -> Iterator[tuple[bytearray, memoryview]]:
    """Read up to `size` bytes, filling every buffer except the file's last."""
    if hasattr(os, "posix_fadvise"):
        with reading(path):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    for offset in range(0, size, BUFFER_SIZE):
        wanted = min(BUFFER_SIZE, size - offset)
        buffer = pipeline.buffer(wanted)
        view = memoryview(buffer)[:wanted]
        with reading(path):
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
