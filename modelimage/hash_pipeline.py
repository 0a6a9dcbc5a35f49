"""A pipeline that computes several digests of one stream at the same time, each in a thread of its own.

One reader fills buffers, and every stage consumes them in order: hashlib, blake3 and file writes release the GIL, so
one big file uses several cores. A buffer is reused once all stages have consumed it, so memory is bounded by the ring,
not by the file. It knows files only by their paths, and opens none.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Final

from blake3 import blake3

from modelimage.digest import Digest
from modelimage.record import CHUNK_SIZE

# A chunk is a whole number of buffers, so no buffer spans two chunks.
BUFFER_SIZE: Final = 2 << 20
# Enough for stages to work on different buffers while the reader fills others: 16 MiB per layer.
RING_BUFFERS: Final = 8


class ChunkHasher:
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


@dataclass(slots=True)
class HashBlock:
    """Bytes to be consumed by the stages. `path`: the file they belong to, None for tar headers and padding."""

    data: memoryview
    path: str | None
    buffer: bytearray | None
    stages_left: int


Stage = Callable[[HashBlock], object]


class FileStage:
    """Computes the sha256 of each file in the stream."""

    def __init__(self) -> None:
        self.hashers: dict[str, hashlib._Hash] = {}

    def __call__(self, block: HashBlock) -> None:
        if block.path is not None:
            hasher = self.hashers.setdefault(block.path, hashlib.sha256())
            hasher.update(block.data)

    @property
    def digests(self) -> dict[str, Digest]:
        return {path: Digest(hasher.hexdigest()) for path, hasher in self.hashers.items()}


class ChunkStage:
    """Computes the BLAKE3 of each chunk of each file in the stream."""

    def __init__(self) -> None:
        self._hashers: dict[str, ChunkHasher] = {}

    def __call__(self, block: HashBlock) -> None:
        if block.path is not None:
            self._hashers.setdefault(block.path, ChunkHasher()).update(block.data)

    def digests(self, path: str) -> tuple[str, ...]:
        """The chunk digests of a file whose bytes have all been consumed."""
        return self._hashers[path].digests()


class HashPipeline:
    """A ring of buffers: one reader fills them, and one thread per stage consumes them in order.

    A failing stage stops computing; the reader notices at its next step, and leaving the context raises the error.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._queues: list[SimpleQueue[HashBlock | None]] = [SimpleQueue() for _ in stages]
        # Daemon threads: a stage that is blocked in a write must not keep the process from exiting.
        self._threads = [
            threading.Thread(target=self._run, args=(stage, queue), daemon=True)
            for stage, queue in zip(stages, self._queues, strict=True)
        ]
        self._free: SimpleQueue[bytearray] = SimpleQueue()
        self._unmade = RING_BUFFERS
        # Held for a count or an error, never while a stage works: the stages are what runs in parallel.
        self._lock = threading.Lock()
        self._failure: BaseException | None = None

    def __enter__(self) -> HashPipeline:
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
        block = HashBlock(data, path, buffer, len(self._queues))
        for queue in self._queues:
            queue.put(block)

    def _run(self, stage: Stage, queue: SimpleQueue[HashBlock | None]) -> None:
        while (block := queue.get()) is not None:
            # After a failure, blocks are still taken and released: a reader waiting for a buffer would hang otherwise.
            if self._failure is None:
                try:
                    stage(block)
                except BaseException as error:  # noqa: BLE001 (raised again in the reader's thread)
                    self._fail(error)
            self._release(block)

    def _release(self, block: HashBlock) -> None:
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
