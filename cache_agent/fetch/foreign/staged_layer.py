"""Writes a streamed layer's files to staged files and hashes them; nothing is trusted before the pass has ended."""

from __future__ import annotations

import threading
from typing import Final

from cache_agent.store.partials import Partial
from cache_agent.store.reservations import Reservation
from cache_agent.store.store import Store
from modelimage.digest import Digest
from modelimage.foreign import TarPiece
from modelimage.hasher import EMPTY_FILE, FileDigests, FileHasher

# Reserved beyond what is needed now, where it is free.
_SPARE_BYTES: Final = 64 << 20


class SpaceReservation:
    """The space reserved for a pull before it starts. Compressed layers reserve more for their files as they need it.

    Thread-safe. Without `evicting` it uses only free space.
    """

    def __init__(self, store: Store, reservation: Reservation, *, evicting: bool = True) -> None:
        self._store, self._reservation, self._evicting = store, reservation, evicting
        self._free = reservation.left
        # Held while it grows: two threads that lack space would each reserve for the other's file as well.
        self._lock = threading.Lock()

    def cover(self, size: int) -> Reservation:
        """Take `size` bytes for a file that is allocated next; returns what has reserved them. Raises NoSpace."""
        size = max(size, 0)
        with self._lock:
            if size > self._free:
                self._grow(size - self._free)
            self._free -= size
        return self._reservation

    def _grow(self, lacking: int) -> None:
        # A compressed layer's files may be larger than the layer, and many.
        more = self._store.space.reserve(lacking, evicting=self._evicting, spare=_SPARE_BYTES)
        self._free += more.left
        self._reservation.absorb(more)


class LayerStager:
    """Stages the files of one pass over a layer: `take` its pieces in order, then `finish`; on error `discard`.

    `wanted`: the members to keep, None for all.
    """

    def __init__(
        self, layer: Digest, wanted: frozenset[int] | None, store: Store, room: SpaceReservation
    ) -> None:
        self.files: dict[int, FileDigests] = {}
        self._layer, self._wanted, self._store, self._room = layer, wanted, store, room
        self._member = -1
        self._staged_file: Partial | None = None
        self._hash = FileHasher()
        self._begun: list[int] = []

    def take(self, piece: TarPiece) -> None:
        """Write and hash the next piece of the layer. Raises NoSpace, NotWritable, DiskFailed."""
        # Not written, but still read by the caller: the layer's digest covers every byte.
        if self._wanted is not None and piece.member not in self._wanted:
            return
        if not piece.size:
            self.files[piece.member] = EMPTY_FILE
            return
        if piece.member != self._member:
            self.finish()
            self._begin(piece)
        if self._staged_file is not None:
            self._staged_file.write(piece.data, piece.offset)
            self._hash.update(piece.data)

    def finish(self) -> None:
        """Finish the current file, if any."""
        if self._staged_file is not None:
            self.files[self._member] = self._hash.digests()
            self._staged_file.close()
            self._staged_file = None

    def discard(self) -> None:
        """Remove the files staged by this pass."""
        if self._staged_file is not None:
            self._staged_file.close()
            self._staged_file = None
        # All of them, also complete ones: no digest vouches for the files of an interrupted pass.
        for member in self._begun:
            self._store.staged_files.drop(self._layer, member)

    def _begin(self, piece: TarPiece) -> None:
        there = self._store.staged_files.size(self._layer, piece.member) or 0
        self._begun.append(piece.member)
        room = self._room.cover(piece.size - there)
        self._staged_file = self._store.staged_files.open(
            self._layer, piece.member, piece.size, room=room
        )
        self._member, self._hash = piece.member, FileHasher()
