"""One file on its way into the store: its partial, its hash, and who waits for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from blake3 import blake3

from cache_agent.chunks import chunk_range
from cache_agent.errors import DiskFailed
from cache_agent.fetch.in_order_hash import Hash, InOrderHasher, LayerHash
from cache_agent.fetch.readable import ReadablePrefix
from cache_agent.sources.source import ChunkRange
from cache_agent.store.partials import Partial, identity
from cache_agent.store.store import Store
from modelimage.digest import Digest
from modelimage.errors import DigestMismatch, Unreachable
from modelimage.recipe import FileSlice, Literal, Recipe
from modelimage.record import CHUNK_SIZE, RecordFile
from modelimage.repository import BlobStream

# Told of every read: how many bytes came. Raises to end the transfer.
Tick = Callable[[int], None]


class Download:
    """Carries one file; whichever thread completes it lands it, exactly once.

    `replace`: the stored file is damaged; its right chunks are kept, and the whole file takes its place everywhere.
    """

    def __init__(
        self, file: RecordFile, repository: str, store: Store, *, replace: bool = False
    ) -> None:
        self.file = file
        self.replace = replace
        self.repository = repository
        self.landed = threading.Event()
        self.ended = threading.Event()
        # How another pull lends it urgency; set when it takes off.
        self.hurry: Callable[[int], None] = lambda priority: None
        self._store = store
        self._partial: Partial | None = None
        self._hash = InOrderHasher(file.chunk_count())
        self._lock = threading.Lock()
        self._landing = False
        self._received = 0
        self._given: set[int] = set()
        self._recalled: set[int] = set()
        self._lost: set[int] = set()
        self.resumed = 0
        # Whether all bytes came out of the image's own layers; what was resumed may have come from anywhere.
        # Set before the first byte that didn't.
        self.proven = True

    def open(self, pause: Callable[[int], None] = lambda count: None) -> None:
        """Open the partial. Raises NoSpace, NotWritable, DiskFailed."""
        self._partial = self._store.partial(self.file)
        if self.replace:
            self._store.salvage(self._partial, pause)
        self._recalled = set(self._partial.verified)
        self.resumed = sum(len(self._piece(index).range) for index in self._recalled)

    def follow_layer(self, layer: Recipe) -> None:
        """Compute its layer's digest on the way, if it holds nothing but this file. Before any byte came."""
        match layer.segments:
            case (Literal(before), FileSlice(file), Literal(after)) if (
                file.digest == self.file.digest
            ):
                self._hash = InOrderHasher(self.file.chunk_count(), LayerHash(before, after))

    def layer(self) -> Digest | None:
        """What the layer's digest came out as; None when it wasn't followed, or the file didn't land."""
        return self._hash.layer() if self.landed.is_set() else None

    @property
    def received(self) -> int:
        """Bytes that came so far, for progress: those resumed and those received, verified or about to be."""
        return self.file.size if self.landed.is_set() else self.resumed + self._received

    def ready(self, position: int) -> ReadablePrefix | None:
        """How far the file can be given out from `position` on, before it is whole; None for not at all.

        Only chunks that this flight saw come out of the image's layers, and right: others prove no right to them.
        """
        index = position // CHUNK_SIZE
        with self._lock:
            while index in self._given:
                index += 1
        stop = min(self.file.size, index * CHUNK_SIZE)
        return ReadablePrefix(self.partial.path, stop) if stop > position else None

    @property
    def is_open(self) -> bool:
        """Whether it has a partial, so that `partial` may be asked for."""
        return self._partial is not None

    @property
    def partial(self) -> Partial:
        if self._partial is None:
            raise RuntimeError("a flight's partial is used before it is open")
        return self._partial

    def receive(
        self, piece: ChunkRange, stream: BlobStream, buffer: memoryview, tick: Tick
    ) -> None:
        """Read one piece off the stream, write it, and count it only if its BLAKE3 is the record's.

        Raises DigestMismatch, Unreachable when the stream ends early, and what stream and disk raise.
        """
        turn = self._hash.take(piece.index)
        try:
            with counting(self._count, tick) as told:
                computed = self._copy(piece, stream, buffer, told, turn)
                self._check(piece, computed)
                self.partial.mark(piece.index)
                self._note_given(piece.index)
        except BaseException:
            if turn is not None:
                self._hash.give_up()
            raise
        if turn is not None:
            self._hash.give(turn)

    def missing(self) -> list[int]:
        """Chunks to fetch. A file that has them all lands here and now: no piece of it will come that could land it."""
        return self.partial.missing() or [piece.index for piece in self.advance()]

    def advance(self) -> Sequence[ChunkRange]:
        """Hash the verified chunks whose turn has come; land the file when that was the last.

        A chunk that isn't any more what was written counts for nothing: it is what must come again. Raises DiskFailed
        when that happens to one twice, DigestMismatch when the record's digests contradict each other.
        """
        while (turn := self._hash.next_turn(self.partial.verified)) is not None:
            index, hashed = turn
            is_kept = False
            try:
                is_kept = self.partial.is_right(index, hashed.update)
                if not is_kept:
                    return [self._lose(index)]
            finally:
                if is_kept:
                    self._hash.give(hashed)
                else:
                    self._hash.give_up()
        computed = self._hash.digest()
        if computed is not None and self._may_land():
            self._land(computed)
        return ()

    def _lose(self, index: int) -> ChunkRange:
        """A chunk isn't any more what was written: it counts for nothing, and must come again."""
        piece = self._piece(index)
        self.partial.unmark(index)
        with self._lock:
            self._given.discard(index)
            if index in self._recalled:
                self._recalled.discard(index)
                self.resumed -= len(piece.range)
            else:
                self._received -= len(piece.range)
            if index in self._lost:
                raise DiskFailed(
                    f"{self.file.path}, chunk {index}: what was written can't be read back, twice",
                    hint="The node's disk or memory is failing: take the node out of use.",
                )
            self._lost.add(index)
        self._store.note_lost(self.file, index)
        return piece

    def _piece(self, index: int) -> ChunkRange:
        return ChunkRange(self.file, index, chunk_range(self.file.size, index))

    def _land(self, computed: Digest) -> None:
        repository = self.repository if self.proven else None
        self._store.admit(self.partial, computed, repository, replace=self.replace)
        if self.replace:
            self._store.relink(self.file.digest)
        self.landed.set()
        self.ended.set()  # who waits for this file need not wait for the rest of its model

    def close(self) -> None:
        if self._partial is not None:
            self._partial.close()

    def _copy(
        self,
        piece: ChunkRange,
        stream: BlobStream,
        buffer: memoryview,
        tick: Tick,
        turn: Hash | None,
    ) -> str:
        """Move one piece from the stream to the partial, hashing what is in the buffer; its BLAKE3."""
        checked, done = blake3(), 0
        while done < len(piece.range):
            count = fill(stream, buffer[: len(piece.range) - done], tick)
            if count == 0:
                raise Unreachable(f"the source ended within {piece.file.path}")
            view = buffer[:count]
            checked.update(view)
            if turn is not None:
                turn.update(view)
            self.partial.write(view, piece.range.start + done)
            done += count
        return str(checked.hexdigest())

    def _count(self, size: int) -> None:
        with self._lock:
            self._received += size

    def _note_given(self, index: int) -> None:
        with self._lock:
            if self.proven:
                self._given.add(index)

    def _may_land(self) -> bool:
        with self._lock:
            first, self._landing = not self._landing, True
            return first

    @staticmethod
    def _check(piece: ChunkRange, computed: str) -> None:
        promised = piece.file.chunks[piece.index]
        if computed != promised:
            raise DigestMismatch(
                f"{piece.file.path}, chunk {piece.index}: the record promises BLAKE3 {promised[:12]}…, "
                f"the source sent {computed[:12]}…",
                hint="The source's copy or the image's record is damaged: push the image again.",
            )


def followed_layers(downloads: Iterable[Download]) -> Iterator[tuple[Digest, Digest]]:
    """Layers whose digest was computed while their only file came, each with what it came out as."""
    for download in downloads:
        computed = download.layer()
        if computed is not None:
            yield download.file.layer, computed


@contextmanager
def counting(count: Callable[[int], None], tick: Tick) -> Iterator[Tick]:
    """A tick that counts what comes, too, however little; all of it is taken back when the transfer fails."""
    came = 0

    def told(size: int) -> None:
        nonlocal came
        came += size
        count(size)
        tick(size)

    try:
        yield told
    except BaseException:
        count(-came)
        raise


def fill(stream: BlobStream, buffer: memoryview, tick: Tick) -> int:
    """Read until the buffer is full or the stream ends; bytes read."""
    filled = 0
    while filled < len(buffer):
        count = stream.readinto(buffer[filled:])
        if count == 0:
            break
        tick(count)
        filled += count
    return filled


class Downloads:
    """Which files are on their way to which store: each by one pull at a time."""

    def __init__(self) -> None:
        self._flying: dict[tuple[Path, Digest], Download] = {}
        self._lock = threading.Lock()

    def claim(
        self,
        store: Store,
        files: Iterable[RecordFile],
        repository: str,
        damaged: Container[Digest] = (),
    ) -> tuple[list[Download], list[Download]]:
        """(those the caller must now fly, those that another pull is flying)."""
        mine, theirs = [], []
        with self._lock:
            for file in files:
                name = (store.paths.root, identity(file))
                download = self._flying.get(name)
                if download is None or download.ended.is_set():
                    self._flying[name] = download = Download(
                        file, repository, store, replace=file.digest in damaged
                    )
                    mine.append(download)
                else:
                    theirs.append(download)
        return mine, theirs

    def flying(self, name: Digest) -> Download | None:
        """The flight of a file by the identity of its record's claims, to whichever store."""
        with self._lock:
            return next((each for (_, key), each in self._flying.items() if key == name), None)

    def release(self, store: Store, downloads: Iterable[Download]) -> None:
        """Flights that ended, landed or not."""
        with self._lock:
            for download in downloads:
                name = (store.paths.root, identity(download.file))
                if self._flying.get(name) is download:
                    del self._flying[name]
        for download in downloads:
            download.ended.set()
