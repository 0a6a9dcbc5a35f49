"""Cuts a tar stream that passes by into the bytes of its files. Pure: buffers in, pieces out; it never looks back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from modelimage.foreign.limits import Limits
from modelimage.foreign.tarwalk import MemberKind, TarMember, TarWalk


@dataclass(frozen=True, slots=True)
class TarPiece:
    """Bytes of one file: the number of its member in the layer, where in the file they go, and the file's size.

    `data` is valid until the next piece is asked for. An empty file gives one empty piece.
    """

    member: int
    offset: int
    data: memoryview
    size: int


class TarSplitter:
    """Feed it the archive's bytes in order, in buffers of any size; then `finish`. Raises InvalidImage."""

    def __init__(self, limits: Limits) -> None:
        self.members: list[TarMember] = []
        self._limits = limits
        self._walk = TarWalk()
        self._position = 0
        self._held = bytearray()

    def feed(self, data: memoryview) -> Iterator[TarPiece]:
        """The pieces in these bytes."""
        stop = self._position + len(data)
        while self._position < stop:
            rest = data[len(data) - (stop - self._position) :]
            if self._position < self._data_stop():
                piece = self._cut(rest)
                self._position += len(piece.data)
                yield piece
            elif self._collect(rest):
                yield TarPiece(len(self.members) - 1, 0, memoryview(b""), 0)

    def finish(self) -> None:
        """Say that there are no more bytes. Raises InvalidImage when the archive isn't at its end."""
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
        """Take the bytes that the walker wants and skip those it doesn't; whether an empty file was found."""
        wanted = self._walk.wanted
        if wanted is None:
            self._position += len(rest)
            return False
        if self._position < wanted.start:
            self._position += min(len(rest), wanted.start - self._position)
            return False
        taken = rest[: wanted.stop - self._position]
        self._held += taken
        self._position += len(taken)
        if self._position < wanted.stop:
            return False
        member = self._walk.feed(bytes(self._held))
        self._held.clear()
        return member is not None and self._add(member)

    def _add(self, member: TarMember) -> bool:
        self._limits.check_members(len(self.members) + 1)
        self._limits.check_size(member.path, member.size)
        self.members.append(member)
        return member.kind is MemberKind.FILE and member.size == 0
