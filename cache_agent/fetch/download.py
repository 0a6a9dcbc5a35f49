"""Downloads one file into the store: its partial, its hash, its commit; and the node's table of running downloads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from blake3 import blake3

from cache_agent.chunks import chunk_range
from cache_agent.errors import DiskFailed
from cache_agent.fetch.admission import SMALL_FILE_BYTES, AdmissionGroup
from cache_agent.fetch.in_order_hash import Hash, InOrderHasher, LayerHash
from cache_agent.fetch.values import ReadablePrefix
from cache_agent.sources.source import ChunkRange
from cache_agent.store.partials import Partial, identity
from cache_agent.store.publisher import CompletedFile
from cache_agent.store.reservations import Reservation
from cache_agent.store.store import Store
from modelimage.digest import Digest
from modelimage.errors import DigestMismatch, Unreachable
from modelimage.recipe import FileSlice, Literal, Recipe
from modelimage.record import CHUNK_SIZE, RecordFile
from modelimage.repository import BlobStream

# Called after every read with its number of bytes. Raises to end the transfer.
Tick = Callable[[int], None]
# Called with the priority of another pull that waits for a download, by that pull's thread.
Hurry = Callable[[int], None]


def ignore_hurry(priority: int) -> None:
    """Does nothing: for downloads that no pull waits for."""


class Download:
    """The download of one file. The worker thread that completes it commits it, exactly once.

    `replace`: the stored file is damaged; its correct chunks are kept, and the new file replaces it in every model.
    `hurry`: raises the priority of the pull that runs it, for another pull that waits for the file.
    """

    def __init__(
        self,
        file: RecordFile,
        repository: str,
        store: Store,
        *,
        replace: bool = False,
        hurry: Hurry = ignore_hurry,
    ) -> None:
        self.file, self.identity = file, identity(file)
        self.replace = replace
        self.repository = repository
        # Two events: another pull that waits must also wake when this fails, and then see that there is no file.
        self.committed = threading.Event()
        self.ended = threading.Event()
        self.hurry = hurry
        self._store = store
        self._partial: Partial | None = None
        self._hash = InOrderHasher(file.chunk_count())
        # The chunks of one file arrive in several workers at a time, which all count them below.
        self._lock = threading.Lock()
        self._committing = False
        self._received = 0
        self._given: set[int] = set()
        self._recalled: set[int] = set()
        self._lost: set[int] = set()
        self.resumed = 0
        # The other small files of its pull, which are admitted together.
        self.group: AdmissionGroup | None = None
        self._proven = True

    @property
    def proven(self) -> bool:
        """Whether all bytes came from the image's own layers, so that the file authorizes its callers."""
        return self._proven

    def mark_unproven(self) -> None:
        """See `ChunkSink.mark_unproven`."""
        # Under the lock of `_note_given`: a chunk is shown to readers only if it was proven when it arrived.
        with self._lock:
            self._proven = False

    def open(self, room: Reservation, pause: Callable[[int], None] = lambda count: None) -> None:
        """Open the partial, whose missing bytes `room` has reserved. Raises NoSpace, NotWritable, DiskFailed."""
        self._partial = self._store.partials.open(self.file, self.identity, room=room)
        if self.replace:
            # Copies the correct chunks of the damaged file first, so only the others are fetched.
            self._store.repairer.salvage(self._partial, pause)
        self._recalled = set(self._partial.verified)
        self.resumed = sum(len(self._piece(index).range) for index in self._recalled)

    def follow_layer(self, layer: Recipe) -> None:
        """Also compute the layer's digest, if the layer contains only this file. Call it before the first byte."""
        # Layers with several files don't pass through one hash: ReuseCheck rebuilds them from the store.
        match layer.segments:
            case (Literal(before), FileSlice(file), Literal(after)) if (
                file.digest == self.file.digest
            ):
                self._hash = InOrderHasher(self.file.chunk_count(), LayerHash(before, after))

    def layer(self) -> Digest | None:
        """The computed layer digest; None without `follow_layer`, or if the file wasn't committed."""
        return self._hash.layer() if self.committed.is_set() else None

    @property
    def received(self) -> int:
        """Bytes so far, for progress: resumed and received, verified or not yet."""
        return self.file.size if self.committed.is_set() else self.resumed + self._received

    def ready(self, position: int) -> ReadablePrefix | None:
        """How far the incomplete file can be served from `position` on; None: not at all.

        Counts only verified chunks that this download read from the image's layers: others prove no access.
        """
        index = position // CHUNK_SIZE
        with self._lock:
            while index in self._given:
                index += 1
        stop = min(self.file.size, index * CHUNK_SIZE)
        return ReadablePrefix(self.partial.path, stop) if stop > position else None

    @property
    def is_open(self) -> bool:
        """Whether `partial` may be used."""
        return self._partial is not None

    @property
    def partial(self) -> Partial:
        if self._partial is None:
            raise RuntimeError("a download's partial file is used before it is open")
        return self._partial

    def receive(
        self, piece: ChunkRange, stream: BlobStream, buffer: memoryview, tick: Tick
    ) -> None:
        """Read one chunk from the stream and write it; mark it only if its BLAKE3 matches the record.

        Raises DigestMismatch, Unreachable when the stream ends early, and the stream's and disk's errors.
        """
        lease = self._hash.lease(piece.index)
        try:
            with counting(self._count, tick) as told:
                computed = self._copy(piece, stream, buffer, told, lease)
                self._check(piece, computed)
                self.partial.mark(piece.index)
                self._note_given(piece.index)
        except BaseException:
            # Else the lease would never be free again, and the file never complete.
            if lease is not None:
                self._hash.drop_lease()
            raise
        # After `mark`: the hash must never be ahead of the verified chunks.
        if lease is not None:
            self._hash.end_lease(lease)

    def missing(self) -> list[int]:
        """The chunks to fetch. Commits a file that already has all of them: no arriving chunk would trigger it."""
        return self.partial.missing() or [piece.index for piece in self.advance()]

    def advance(self) -> Sequence[ChunkRange]:
        """Hash the verified chunks that are next in order; commit the file after the last one.

        Returns a chunk that changed on disk after it was written: it must be fetched again. Raises DiskFailed when that
        happens twice to one chunk, DigestMismatch when the record's sha256 and chunk digests contradict each other.
        """
        while (lease := self._hash.lease_next(self.partial.verified)) is not None:
            index, hashed = lease
            is_kept = False
            try:
                # Checked again while hashing: one bad chunk found only by the sha256 would cost the whole file.
                is_kept = self.partial.is_right(index, hashed.update)
                if not is_kept:
                    return [self._lose(index)]
            finally:
                if is_kept:
                    self._hash.end_lease(hashed)
                else:
                    self._hash.drop_lease()
        computed = self._hash.digest()
        if computed is not None and self._may_commit():
            self._commit_file(computed)
        return ()

    def _lose(self, index: int) -> ChunkRange:
        """Discard a chunk that changed on disk; return it to be fetched again. Raises DiskFailed the second time."""
        piece = self._piece(index)
        self.partial.unmark(index)
        with self._lock:
            self._given.discard(index)
            # The counts go back as well: progress would end above 100 %.
            if index in self._recalled:
                self._recalled.discard(index)
                self.resumed -= len(piece.range)
            else:
                self._received -= len(piece.range)
            if index in self._lost:
                raise DiskFailed(
                    f"{self.file.path}, chunk {index}: the bytes read back differ from those written, twice",
                    hint="The node's disk or memory is failing: take the node out of use.",
                )
            self._lost.add(index)
        self._store.partials.note_lost(self.file, index)
        return piece

    def _piece(self, index: int) -> ChunkRange:
        return ChunkRange(self.file, index, chunk_range(self.file.size, index))

    def _commit_file(self, computed: Digest) -> None:
        # Without proof the file is stored, but it authorizes nobody: see `ReuseCheck`.
        repository = self.repository if self._proven else None
        completed = CompletedFile(self.partial, computed, repository, self.replace)
        if self.group is not None and self.file.size <= SMALL_FILE_BYTES:
            self.group.add(completed, self._note_admitted)
        else:
            self._store.files.admit([completed])
            self._note_admitted()

    def _note_admitted(self) -> None:
        # Model directories still hard-link the damaged inode.
        if self.replace:
            self._store.repairer.relink(self.file.digest)
        self.committed.set()
        self.ended.set()  # other pulls wait for this file, not for the rest of its model

    def close(self) -> None:
        if self._partial is not None:
            self._partial.close()

    def _copy(
        self,
        piece: ChunkRange,
        stream: BlobStream,
        buffer: memoryview,
        tick: Tick,
        lease: Hash | None,
    ) -> str:
        """Copy one chunk from the stream to the partial, hashing it in the buffer. Returns its BLAKE3."""
        checked, done = blake3(), 0
        while done < len(piece.range):
            count = fill(stream, buffer[: len(piece.range) - done], tick)
            if count == 0:
                raise Unreachable(f"the source ended in the middle of {piece.file.path}")
            view = buffer[:count]
            checked.update(view)
            if lease is not None:
                lease.update(view)
            self.partial.write(view, piece.range.start + done)
            done += count
        return str(checked.hexdigest())

    def _count(self, size: int) -> None:
        with self._lock:
            self._received += size

    def _note_given(self, index: int) -> None:
        with self._lock:
            if self._proven:
                self._given.add(index)

    def _may_commit(self) -> bool:
        # Several workers may find the hash complete; only one commits.
        with self._lock:
            first, self._committing = not self._committing, True
            return first

    @staticmethod
    def _check(piece: ChunkRange, computed: str) -> None:
        promised = piece.file.chunks[piece.index]
        if computed != promised:
            raise DigestMismatch(
                f"{piece.file.path}, chunk {piece.index}: the record states BLAKE3 {promised[:12]}…, "
                f"the source sent {computed[:12]}…",
                hint="The source's copy or the image's record is damaged: push the image again.",
            )


def followed_layers(downloads: Iterable[Download]) -> Iterator[tuple[Digest, Digest]]:
    """(layer, computed digest) of the layers whose digest was computed while their only file was downloaded."""
    for download in downloads:
        computed = download.layer()
        if computed is not None:
            yield download.file.layer, computed


@contextmanager
def counting(count: Callable[[int], None], tick: Tick) -> Iterator[Tick]:
    """A tick that also counts bytes for progress, and takes them back when the transfer fails."""
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
    """Read until the buffer is full or the stream ends. Returns the number of bytes."""
    # A tick for every read, not only for a full buffer: the watchdog measures progress by it.
    filled = 0
    while filled < len(buffer):
        count = stream.readinto(buffer[filled:])
        if count == 0:
            break
        tick(count)
        filled += count
    return filled


class Downloads:
    """The node's running downloads: each file of a store is downloaded by one pull at a time. Thread-safe."""

    def __init__(self) -> None:
        self._running: dict[tuple[Path, Digest], Download] = {}
        # Looking a file up and entering it are one step: two pulls at once would write into one partial.
        self._lock = threading.Lock()

    def claim(
        self,
        store: Store,
        files: Iterable[RecordFile],
        repository: str,
        *,
        damaged: Container[Digest] = (),
        hurry: Hurry = ignore_hurry,
    ) -> tuple[list[Download], list[Download]]:
        """(downloads that the caller must now run, downloads that another pull runs).

        `hurry` is called by other pulls that wait for one of the caller's.
        """
        mine, theirs = [], []
        with self._lock:
            for file in files:
                # By all claims of the record, not by sha256: a forged record must not share a download.
                name = (store.paths.root, identity(file))
                download = self._running.get(name)
                if download is None or download.ended.is_set():
                    self._running[name] = download = Download(
                        file, repository, store, replace=file.digest in damaged, hurry=hurry
                    )
                    mine.append(download)
                else:
                    theirs.append(download)
        return mine, theirs

    def running(self, name: Digest) -> Download | None:
        """The running download of a file, by the identity of its record's claims, in any store."""
        with self._lock:
            return next((each for (_, key), each in self._running.items() if key == name), None)

    def release(self, store: Store, downloads: Iterable[Download]) -> None:
        """Remove downloads that ended, committed or not, and wake the pulls that wait for them."""
        with self._lock:
            for download in downloads:
                name = (store.paths.root, download.identity)
                # A committed file may have been claimed again since; that entry is another pull's.
                if self._running.get(name) is download:
                    del self._running[name]
        # After the removal: a pull woken by it may claim the file again immediately.
        for download in downloads:
            download.ended.set()
