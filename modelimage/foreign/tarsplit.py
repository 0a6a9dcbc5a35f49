"""Splits a tar stream into the bytes of its files. Pure: buffers to pieces, in one pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from modelimage.foreign.limits import Limits
from modelimage.foreign.tarwalk import MemberKind, TarMember, TarWalk


@dataclass(frozen=True, slots=True)
class TarPiece:
    """Bytes of one file: its member number in the layer, their offset in the file, and the file's size.

    `data` is valid until the next piece is requested. An empty file gives one empty piece.
    """

    member: int
    offset: int
    data: memoryview
    size: int


class TarSplitter:
    """Accepts the archive's bytes in order with `feed`, in buffers of any size; then `finish`. Raises InvalidImage."""

    def __init__(self, limits: Limits) -> None:
        self.members: list[TarMember] = []
        self._limits = limits
        self._walk = TarWalk()
        self._position = 0
        self._held = bytearray()

    def feed(self, data: memoryview) -> Iterator[TarPiece]:
        """Yield the pieces in these bytes."""
        stop = self._position + len(data)
        while self._position < stop:
            rest = data[len(data) - (stop - self._position) :]
            # File data is passed on without a copy; only headers are collected.
            if self._position < self._data_stop():
                piece = self._cut(rest)
                self._position += len(piece.data)
                yield piece
            elif self._collect(rest):
                yield TarPiece(len(self.members) - 1, 0, memoryview(b""), 0)

    def finish(self) -> None:
        """End the archive. Raises InvalidImage if it is incomplete."""
        self._walk.finish(self._position)

    def _data_stop(self) -> int:
        return self.members[-1].stop if self.members else 0

    def _cut(self, rest: memoryview) -> TarPiece:
        member = self.members[-1]
        return TarPiece(
            len(self.members) - 1,
            self._position - member.offset,
            rest[: member.stop - self._position],
            member.size,
        )

    def _collect(self, rest: memoryview) -> bool:
        """Pass wanted bytes to the walker and skip the others; returns whether an empty file was found."""
        # After the end of the archive: padding up to the record size, which tar programs write and ignore.
        wanted = self._walk.wanted
        if wanted is None:
            self._position += len(rest)
            return False
        # Padding between a file and the next header.
        if self._position < wanted.start:
            self._position += min(len(rest), wanted.start - self._position)
            return False
        taken = rest[: wanted.stop - self._position]
        # A header may arrive in several buffers.
        self._held += taken
        self._position += len(taken)
        if self._position < wanted.stop:
            return False
        member = self._walk.feed(bytes(self._held))
        self._held.clear()
        return member is not None and self._add(member)

    def _add(self, member: TarMember) -> bool:
        # Before any byte of the member is passed on.
        self._limits.check_members(len(self.members) + 1)
        self._limits.check_size(member.path, member.size)
        self.members.append(member)
        return member.kind is MemberKind.FILE and member.size == 0
