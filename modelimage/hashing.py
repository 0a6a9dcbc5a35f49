"""One read of each file gives everything that is said of it: sha256, BLAKE3 per chunk, the layer's sha256.

A read fills a buffer, and each digest (and the destination, when the layer is written on the way) takes it in a
thread of its own: hashlib, blake3 and file writes release the GIL, so one big file keeps several cores busy. A
buffer is used again once every lane is through with it, so memory is bounded by the ring and not by the file.
Knows nothing of where files come from or where a layer goes.
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

# A chunk is a whole number of buffers, so no buffer crosses from one chunk into the next.
BUFFER_SIZE: Final = 2 << 20
RING_BUFFERS: Final = 8

Progress = Callable[[int], None]
# Takes every byte of a buffer; called from one thread, in order.
Sink = Callable[[memoryview], object]


@dataclass(frozen=True, slots=True)
class FileDigests:
    """What one read of a file gives: its sha256, and the BLAKE3 of each 32 MiB chunk in hex."""

    digest: Digest
    chunks: tuple[str, ...]


EMPTY_FILE: Final = FileDigests(Digest.of(b""), ())


@dataclass(frozen=True, slots=True)
class LayerDigests:
    """A layer blob's digest, and by path those of the files in it that aren't empty."""

    digest: Digest
    files: Mapping[str, FileDigests]


def hash_layer(
    recipe: Recipe,
    locate: Callable[[str], Path],
    *,
    sink: Sink | None = None,
    progress: Progress | None = None,
) -> LayerDigests:
    """Digest a layer made of whole files, and hand its bytes to `sink` on the way.

    `locate` says where the file of a path is. The digests in the recipe's files are not looked at. `progress` gets
    the bytes read since its last call, and may raise to stop. Raises InvalidCheckpoint when a file changes
    while it is read, NotFound and AccessDenied when it can't be, and what `sink` raises.
    """
    layer, files, chunks = hashlib.sha256(), _FileLane(), _ChunkLane()
    lanes: list[_Lane] = [lambda block: layer.update(block.data), files, chunks]
    if sink is not None:
        lanes.append(lambda block: sink(block.data))
    with _HashPipeline(lanes) as pipeline:
        for segment in recipe.segments:
            if isinstance(segment, FileSlice):
                _read_file(locate(segment.file.path), segment.file, pipeline, progress)
            else:
                pipeline.put(memoryview(segment.data))
    return LayerDigests(
        Digest(layer.hexdigest()),
        {path: FileDigests(digest, chunks.of(path)) for path, digest in files.digests.items()},
    )


@dataclass(frozen=True, slots=True)
class StreamDigests:
    """What a blob that streams by turned out to be.

    `files` has the digests of the files that its recipe places in it; `follows_recipe` is whether length, tar headers
    and padding are the recipe's.
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
    """Digest a layer blob from a stream, and the files in it by the recipe.

    `read` fills a part of a buffer and returns the count, 0 at the end. Whatever the stream holds is digested to its
    end: comparing is the caller's. Raises what `read` raises.
    """
    layer, files, chunks = hashlib.sha256(), _FileLane(), _ChunkLane()
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
        {path: FileDigests(digest, chunks.of(path)) for path, digest in files.digests.items()},
        stream.follows_recipe,
    )


def hash_file(path: Path, *, progress: Progress | None = None) -> FileDigests:
    """Digest one file. Raises as `hash_layer` does."""
    size = regular_file_size(path)
    if size == 0:
        return EMPTY_FILE
    name = str(path)
    files, chunks = _FileLane(), _ChunkLane()
    with _HashPipeline([files, chunks]) as pipeline:
        _read_file(path, LayerFile(name, size, EMPTY_FILE.digest), pipeline, progress)
    return FileDigests(files.digests[name], chunks.of(name))


def regular_file_size(path: Path) -> int:
    """Bytes of a regular file. Raises NotFound, AccessDenied, and InvalidCheckpoint for any other kind."""
    with reading(path):
        status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise InvalidCheckpoint(f"{path} is not a regular file")
    return status.st_size


@dataclass(slots=True)
class _Block:
    """Bytes on their way through the lanes. `path` is the file they come from, None for tar headers and padding."""

    data: memoryview
    path: str | None
    buffer: bytearray | None
    lanes_left: int


_Lane = Callable[[_Block], object]


class _FileLane:
    """The sha256 of each file that passes."""

    def __init__(self) -> None:
        self.hashers: dict[str, hashlib._Hash] = {}

    def __call__(self, block: _Block) -> None:
        if block.path is not None:
            hasher = self.hashers.setdefault(block.path, hashlib.sha256())
            hasher.update(block.data)

    @property
    def digests(self) -> dict[str, Digest]:
        return {path: Digest(hasher.hexdigest()) for path, hasher in self.hashers.items()}


class _ChunkLane:
    """The BLAKE3 of each chunk of each file that passes."""

    def __init__(self) -> None:
        self._done: dict[str, list[str]] = {}
        self._hasher = blake3()
        self._filled = 0
        self._path = ""

    def __call__(self, block: _Block) -> None:
        if block.path is None:
            return
        if block.path != self._path or self._filled == CHUNK_SIZE:
            self._finish()
            self._path = block.path
        self._hasher.update(block.data)
        self._filled += len(block.data)

    def _finish(self) -> None:
        if self._filled:
            self._done.setdefault(self._path, []).append(self._hasher.hexdigest())
            self._hasher, self._filled = blake3(), 0

    def of(self, path: str) -> tuple[str, ...]:
        """The chunk digests of a file, once all of it has passed."""
        self._finish()
        return tuple(self._done[path])


class _HashPipeline:
    """A ring of buffers that one reader fills and a thread per lane takes in order.

    A lane that fails stops taking, the reader learns of it at its next step, and the lane's error is what
    leaving the context raises.
    """

    def __init__(self, lanes: Sequence[_Lane]) -> None:
        self._queues: list[SimpleQueue[_Block | None]] = [SimpleQueue() for _ in lanes]
        self._threads = [
            threading.Thread(target=self._run, args=(lane, queue), daemon=True)
            for lane, queue in zip(lanes, self._queues, strict=True)
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
        if error is not None:
            self._fail(error)
        for queue in self._queues:
            queue.put(None)
        for thread in self._threads:
            thread.join()
        if error is None:
            self.check()

    def check(self) -> None:
        """Raise what a lane raised."""
        if self._failure is not None:
            raise self._failure

    def buffer(self, size: int) -> bytearray:
        """A buffer that no lane uses any more; a new one while the ring isn't complete."""
        self.check()
        if size < BUFFER_SIZE:
            return bytearray(size)
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

    def _run(self, lane: _Lane, queue: SimpleQueue[_Block | None]) -> None:
        while (block := queue.get()) is not None:
            if self._failure is None:
                try:
                    lane(block)
                except BaseException as error:  # noqa: BLE001 (raised again in the reader's thread)
                    self._fail(error)
            self._release(block)

    def _release(self, block: _Block) -> None:
        with self._lock:
            block.lanes_left -= 1
            last = block.lanes_left == 0
        if last and block.buffer is not None and len(block.buffer) == BUFFER_SIZE:
            self._free.put(block.buffer)

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            self._failure = self._failure or error


class _Stream:
    """Cuts a stream into the segments that a recipe expects and notes where it isn't so."""

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
        """What follows the last segment, which should be nothing."""
        complete = not self._ended
        while len(self._take(BUFFER_SIZE, None)):
            complete = False
        self.follows_recipe = self.follows_recipe and complete

    def _take(self, wanted: int, path: str | None) -> memoryview:
        """Up to `wanted` bytes, sent down the lanes; fewer only where the stream ends."""
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
        if left or before[0] != file.size or _state(descriptor, path) != before:
            raise InvalidCheckpoint(
                f"{path} changed while it was read",
                hint="Wait until nothing writes to the checkpoint any more, then try again.",
            )
    finally:
        os.close(descriptor)


def _buffers(
    descriptor: int, path: Path, size: int, pipeline: _HashPipeline
) -> Iterator[tuple[bytearray, memoryview]]:
    """Read up to `size` bytes, each buffer filled whole but for the file's last."""
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
    """Read until the view is full or the source ends; the bytes read."""
    count = 0
    while count < len(view) and (got := read(view[count:])):
        count += got
    return count


def _state(descriptor: int, path: Path) -> tuple[int, int]:
    with reading(path):
        status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns
