"""ChunkSinks for the layers of foreign images: read in one pass, or in ranges. Called by the engine's threads.

Both end alike: `verified` is called with the layer's contents once the digest computed here equals the manifest's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from cache_agent.chunks import chunk_range
from cache_agent.fetch.download import Tick, counting, fill
from cache_agent.fetch.foreign.fetch_plan import Found, LayerPlan, empty_files
from cache_agent.fetch.foreign.staged_layer import LayerStager, SpaceReservation
from cache_agent.fetch.values import ReadablePrefix
from cache_agent.sources.source import ChunkRange
from cache_agent.store.partials import Partial
from cache_agent.store.store import Store
from modelimage.digest import Digest
from modelimage.errors import DigestMismatch, Unreachable
from modelimage.foreign import LayerContents, LayerStream, Limits, Packing
from modelimage.hasher import EMPTY_FILE, hash_layer
from modelimage.recipe import LayerFile, Recipe
from modelimage.record import CHUNK_SIZE
from modelimage.repository import BlobStream

# Called with every layer whose digest was verified, and its contents.
Verified = Callable[[Digest, Found], None]


class StreamedLayer:
    """Receives a layer in one pass. An interrupted pass leaves nothing on disk; the next starts from the beginning."""

    def __init__(
        self,
        plan: LayerPlan,
        store: Store,
        room: SpaceReservation,
        limits: Limits,
        verified: Verified,
    ) -> None:
        self.plan = plan
        self.received = self.resumed = 0
        self._store, self._room, self._limits = store, room, limits
        self._verified = verified

    def open(self, room: SpaceReservation) -> dict[Digest, list[int]]:
        """The missing chunks by name: always the whole layer, since a pass can't be resumed."""
        return {self.plan.layer.digest: [0]}

    def mark_unproven(self) -> None:
        """Never called: only sources that authorize are asked for a foreign image's layers."""

    def receive(
        self, piece: ChunkRange, stream: BlobStream, buffer: memoryview, tick: Tick
    ) -> None:
        """Read the whole layer. Raises DigestMismatch, InvalidImage, and the stream's and disk's errors."""
        self.read(_Ticking(stream, tick))

    def read(self, blob: BlobStream) -> None:
        """See `receive`."""
        # Decompressed in the worker's thread: a slow disk then slows the source down instead of filling memory.
        layer = self.plan.layer
        passing = LayerStream(layer, blob, limits=self._limits, progress=self._count)
        stager = LayerStager(layer.digest, self.plan.wanted, self._store, self._room)
        try:
            for piece in passing:
                stager.take(piece)
            stager.finish()
        except BaseException:
            self.received = 0
            stager.discard()
            raise
        self._verified(layer.digest, Found(LayerContents(passing.members, stager.files)))

    def advance(self) -> Sequence[ChunkRange]:
        """Verify an empty blob without requesting it."""
        if not self.plan.whole.size:
            self.read(_Nothing())
        return ()

    def _count(self, size: int) -> None:
        self.received += size


class RangedLayer:
    """Receives a layer's files in ranges, in any order; the thread that receives the last byte verifies the layer.

    Received bytes stay for the next pull. If the layer's digest is wrong, all are dropped: which are wrong is unknown.
    """

    def __init__(
        self, plan: LayerPlan, store: Store, watch: Callable[[int], None], verified: Verified
    ) -> None:
        self.plan = plan
        self.resumed = 0
        self.failure: DigestMismatch | None = None
        self._store, self._watch, self._verified = store, watch, verified
        self._staged_files: dict[Digest, Partial] = {}
        # The last bytes may arrive in two workers at once, of which one verifies the layer.
        self._lock = threading.Lock()
        self._received = 0
        self._ended = False
        self.verified = False

    def open(self, room: SpaceReservation) -> dict[Digest, list[int]]:
        """Open the staged files; returns each one's missing chunks by its name.

        Raises NoSpace, NotWritable, DiskFailed.
        """
        layer = self.plan.layer.digest
        for member, file in self.plan.ranged.items():
            there = self._store.staged_files.size(layer, member) or 0
            self._staged_files[file.digest] = self._store.staged_files.open(
                layer, member, file.size, room=room.cover(file.size - there)
            )
        missing = {name: staged_file.missing() for name, staged_file in self._staged_files.items()}
        self.resumed = sum(
            len(chunk_range(staged_file.file.size, index))
            for staged_file in self._staged_files.values()
            for index in staged_file.verified
        )
        return missing

    @property
    def received(self) -> int:
        return self.resumed + self._received

    def mark_unproven(self) -> None:
        """Never called: only sources that authorize are asked for a foreign image's layers."""

    def receive(
        self, piece: ChunkRange, stream: BlobStream, buffer: memoryview, tick: Tick
    ) -> None:
        """Read one chunk. Raises Unreachable when the stream ends early, and the stream's and disk's errors."""
        staged_file, done = self._staged_files[piece.file.digest], 0
        with counting(self._count, tick) as told:
            while done < len(piece.range):
                count = fill(stream, buffer[: len(piece.range) - done], told)
                _check_more(count, piece)
                staged_file.write(buffer[:count], piece.range.start + done)
                done += count
        # Marked as received only: a foreign file has no chunk digests, so the layer's digest is the first check.
        staged_file.mark(piece.index)

    def advance(self) -> Sequence[ChunkRange]:
        """Verify the layer once all files are complete; sets `failure` if its digest isn't the manifest's."""
        if (
            not any(staged_file.missing() for staged_file in self._staged_files.values())
            and self._is_first()
        ):
            self._verify()
        return ()

    def _verify(self) -> None:
        layer = self.plan.layer
        found = verify_files(self.plan, self._store, self._watch)
        if found is not None:
            # Tar headers weren't fetched: counted now, so the progress reaches the layer's size.
            self._received = layer.descriptor.size - self.resumed
            self.verified = True
            self._verified(layer.digest, found)
            return
        # Kept, not raised: an error here would end the whole job. `ForeignFetch` fetches this layer once more.
        self.failure = DigestMismatch(
            f"layer {layer.digest} doesn't match its digest",
            hint="Try again; if the error persists, the registry's copy is damaged: push the image again.",
        )
        self._received = self.resumed = 0
        for member in self.plan.ranged:
            self._store.staged_files.drop(layer.digest, member)

    def ready(self, position: int) -> ReadablePrefix | None:
        """How far a raw layer's file can be read from `position` on; None: not yet.

        The last chunk is withheld until the layer is verified: no client gets a complete file that is wrong.
        """
        if self.plan.layer.packing is not Packing.RAW or not self._staged_files:
            return None
        (staged_file,) = self._staged_files.values()
        index, last = position // CHUNK_SIZE, staged_file.file.chunk_count() - 1
        # "Verified" means received here: a foreign file has no chunk digests.
        arrived = staged_file.verified
        while index in arrived and (index < last or self.verified):
            index += 1
        stop = min(staged_file.file.size, index * CHUNK_SIZE)
        return ReadablePrefix(staged_file.path, stop) if stop > position else None

    def check(self) -> None:
        """Raises DigestMismatch if the layer's digest was wrong."""
        if self.failure is not None:
            raise self.failure

    def close(self) -> None:
        for staged_file in self._staged_files.values():
            staged_file.close()

    def _is_first(self) -> bool:
        # Several workers may find all files complete; only one verifies.
        with self._lock:
            first, self._ended = not self._ended, True
            return first

    def _count(self, size: int) -> None:
        with self._lock:
            self._received += size


class Finished:
    """A layer that an earlier pull fetched; for progress."""

    def __init__(self, size: int) -> None:
        self.received = self.resumed = size


def verify_files(plan: LayerPlan, store: Store, watch: Callable[[int], None]) -> Found | None:
    """Hash a layer from its staged files and literals. Returns its contents; None if its digest is wrong."""
    layer = plan.layer
    recipe = layer.recipe(
        lambda number: LayerFile(str(number), plan.ranged[number].size, layer.digest)
    )
    found = hash_layer(
        recipe or Recipe.from_segments(()),
        lambda name: store.staged_files.path(layer.digest, int(name)),
        progress=watch,
    )
    if found.digest != layer.digest:
        return None
    files = {int(name): digests for name, digests in found.files.items()}
    files |= dict.fromkeys(empty_files(layer), EMPTY_FILE)
    return Found(LayerContents(layer.members or (), files), layer.literals)


def _check_more(count: int, piece: ChunkRange) -> None:
    if count == 0:
        raise Unreachable(f"the source ended in the middle of {piece.file.path}")


class _Nothing:
    """The stream of an empty blob."""

    def readinto(self, buffer: memoryview, /) -> int:
        return 0

    def close(self) -> None:
        """Does nothing."""


class _Ticking:
    """A stream that calls `tick` after every read."""

    def __init__(self, stream: BlobStream, tick: Tick) -> None:
        self._stream, self._tick = stream, tick

    def readinto(self, buffer: memoryview, /) -> int:
        count = self._stream.readinto(buffer)
        self._tick(count)
        return count

    def close(self) -> None:
        self._stream.close()
