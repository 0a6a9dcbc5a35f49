"""The contents of one verified layer: its members, and the digests of the files whose bytes were kept.

Known once a layer was read to its end, and worth storing: a layer shared with another image, or finished before a
crash, then need not be read again even if it is compressed. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modelimage.bounds import MALFORMED
from modelimage.digest import Digest
from modelimage.errors import InvalidImage, WeightyardError
from modelimage.foreign.tarwalk import MemberKind, TarMember
from modelimage.hasher import FileDigests


@dataclass(frozen=True, slots=True)
class LayerContents:
    """A layer's members in order; `files` has digests by member number. Law: `parse(c.to_json()) == c`."""

    members: tuple[TarMember, ...]
    files: Mapping[int, FileDigests]

    def to_json(self) -> dict[str, Any]:
        return {
            "members": [_member_json(member) for member in self.members],
            "files": [
                {"member": number, "sha256": found.digest.hex, "blake3": list(found.chunks)}
                for number, found in sorted(self.files.items())
            ],
        }

    @classmethod
    def parse(cls, value: Mapping[str, Any]) -> LayerContents:
        """Parse `to_json`'s output. Raises InvalidImage."""
        try:
            members = tuple(_member(each) for each in value["members"])
            files = {
                int(each["member"]): FileDigests(
                    Digest(each["sha256"]), tuple(str(chunk) for chunk in each["blake3"])
                )
                for each in value["files"]
            }
        except (*MALFORMED, WeightyardError) as error:
            raise InvalidImage(f"malformed contents of a layer: {error!r}") from error
        if any(number not in range(len(members)) for number in files):
            raise InvalidImage("malformed contents of a layer: a file isn't in the archive")
        return cls(members, files)


def _member_json(member: TarMember) -> list[Any]:
    return [
        _text(member.path),
        member.kind.value,
        member.size,
        member.offset,
        _text(member.target),
    ]


def _member(value: Sequence[Any]) -> TarMember:
    path, kind, size, offset, target = value
    if type(size) is not int or type(offset) is not int or min(size, offset) < 0:
        raise ValueError(f"a member of {size!r:.40} bytes at {offset!r:.40}")
    return TarMember(_name(path), MemberKind(kind), size, offset, _name(target))


# Names in a base image need not be UTF-8, but JSON must be.
def _text(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("latin-1")


def _name(text: str) -> str:
    return text.encode("latin-1").decode("utf-8", "surrogateescape")
