"""The tar grammar for archives made by other tools: bytes to members. No files, no sockets.

POSIX ustar and pax (IEEE 1003.1-2001), GNU long names and base-256 numbers, and the old v7 format. A walker states
which bytes it needs next, so one grammar serves both small range reads of a remote blob and a stream.

Archives that two tar programs would interpret differently are refused, because the interpretation that was checked
must be the one that is used: a lone zero block in the middle, two names for one member, global names, malformed
numbers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from modelimage.errors import InvalidImage
from modelimage.ranges import ByteRange
from modelimage.tar import BLOCK, padding

# Bounds for untrusted headers, far above those of real archives.
MAX_EXTENSION: Final = 1 << 20
MAX_PATH: Final = 4096
MAX_DEPTH: Final = 100
_MAX_SIZE: Final = 1 << 62

_USTAR: Final = b"ustar\x00"
_OCTAL = re.compile(rb"[0-7]*")
_PAX_RECORD = re.compile(rb"([1-9][0-9]{0,7}) ")
_SPARSE: Final = b"GNU.sparse."


class MemberKind(Enum):
    """The type of a member. SPECIAL: a device or named pipe, never part of a model."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symbolic link"
    HARDLINK = "hard link"
    SPECIAL = "device or named pipe"


_KINDS: Final = {
    b"0": MemberKind.FILE,
    b"\x00": MemberKind.FILE,
    # 7 is a contiguous file, which POSIX lets programs treat like any other.
    b"7": MemberKind.FILE,
    b"1": MemberKind.HARDLINK,
    b"2": MemberKind.SYMLINK,
    b"3": MemberKind.SPECIAL,
    b"4": MemberKind.SPECIAL,
    b"5": MemberKind.DIRECTORY,
    b"6": MemberKind.SPECIAL,
}


@dataclass(frozen=True, slots=True)
class TarMember:
    """One member. `path` is relative and normalized, '' for the root directory; `offset` is the start of its data.

    Bytes of names that aren't UTF-8 become surrogates. `target` is a hard link's path, also normalized, or a symbolic
    link's text, unchanged.
    """

    path: str
    kind: MemberKind
    size: int = 0
    offset: int = 0
    target: str = ""

    @property
    def stop(self) -> int:
        """The end of its data."""
        return self.offset + self.size


@dataclass(slots=True)
class _Extensions:
    """Values from extension headers for the member that follows them."""

    path: bytes | None = None
    target: bytes | None = None
    size: int | None = None
    seen: bool = False

    def set_path(self, value: bytes) -> None:
        self.path = _once(self.path, value)

    def set_target(self, value: bytes) -> None:
        self.target = _once(self.target, value)


class _Need(Enum):
    HEADER = "header"
    SECOND_ZERO = "second zero block"
    LONG_NAME = "long name"
    LONG_TARGET = "long link target"
    PAX = "pax header"
    PAX_GLOBAL = "global pax header"
    NOTHING = "nothing"


_EXTENSIONS: Final = {
    b"L": _Need.LONG_NAME,
    b"K": _Need.LONG_TARGET,
    b"x": _Need.PAX,
    # Solaris' name for the same.
    b"X": _Need.PAX,
    b"g": _Need.PAX_GLOBAL,
}


@dataclass(slots=True)
class TarWalk:
    """Walks one archive: feed it the bytes of `wanted` until that is None.

    Law: the members don't depend on how their bytes were fetched. Raises only InvalidImage, for any bytes.
    """

    _need: _Need = _Need.HEADER
    _next: int = 0
    _length: int = BLOCK
    _ended: int = 0
    _extensions: _Extensions = field(default_factory=_Extensions)

    @property
    def wanted(self) -> ByteRange | None:
        """The range of the archive needed next; None after the end of the archive."""
        if self._need is _Need.NOTHING:
            return None
        return ByteRange(self._next, self._next + self._length)

    def feed(self, data: bytes) -> TarMember | None:
        """Take exactly the wanted bytes; return the member that they complete, if any."""
        # A shorter piece can only mean that the archive has ended: callers always feed what was wanted.
        if len(data) != self._length or self._need is _Need.NOTHING:
            raise InvalidImage(f"the archive ends in the middle, at {self._next + len(data)}")
        if self._need in (_Need.HEADER, _Need.SECOND_ZERO):
            return self._block(data)
        self._extend(data)
        self._expect(self._next + self._length + padding(self._length))
        return None

    def finish(self, size: int) -> None:
        """End the archive at `size` bytes. Raises InvalidImage if it is incomplete.

        The trailer and the last file's padding may be missing: umoci omits both.
        """
        at_member = self._need in (_Need.HEADER, _Need.SECOND_ZERO) and not self._extensions.seen
        if self._need is not _Need.NOTHING and not (
            at_member and self._ended <= size <= self._next
        ):
            raise InvalidImage(f"the archive ends in the middle, at {size}")

    def _block(self, data: bytes) -> TarMember | None:
        self._ended = self._next + BLOCK
        if not any(data):
            if self._extensions.seen:
                raise InvalidImage("the archive ends after a header, before its member")
            ended = self._need is _Need.SECOND_ZERO
            self._expect(self._next + BLOCK, _Need.NOTHING if ended else _Need.SECOND_ZERO)
            return None
        # A single zero block ends the archive for some tar programs and is skipped by others.
        if self._need is _Need.SECOND_ZERO:
            raise InvalidImage("the archive continues after a zero block")
        _check_sum(data)
        flag = data[156:157]
        size = _number(data[124:136], "size")
        if flag in _EXTENSIONS:
            # Bounded before the bytes are requested, because they are held in memory.
            if not 0 < size <= MAX_EXTENSION:
                raise InvalidImage(f"a tar extension header of {size} bytes")
            self._extensions.seen = True
            self._expect(self._next + BLOCK, _EXTENSIONS[flag], size)
            return None
        return self._member(data, flag, size)

    def _member(self, data: bytes, flag: bytes, size: int) -> TarMember:
        kind = _KINDS.get(flag)
        if kind is None:
            raise InvalidImage(f"a tar member of an unknown or unsupported type {flag!r}")
        given, self._extensions = self._extensions, _Extensions()
        # Extension headers take precedence over the fields of ustar, which cut long names (POSIX pax, GNU tar).
        name = given.path if given.path is not None else _header_name(data)
        target = given.target if given.target is not None else _text(data[157:257])
        if given.size is not None:
            size = given.size
        # v7 archives have no type for directories: a trailing slash marks them. In later formats it is ambiguous.
        if name.endswith(b"/") and kind is MemberKind.FILE:
            if flag != b"\x00":
                raise InvalidImage(
                    f"a file in a tar archive has a directory's name: {name[:200]!r}"
                )
            kind = MemberKind.DIRECTORY
        start = self._next + BLOCK
        # Links and directories have no data, whatever their size field says.
        size = size if kind is MemberKind.FILE else 0
        self._expect(start + size + padding(size))
        self._ended = start + size
        return TarMember(_path(name, kind), kind, size, start, _target(target, kind))

    def _extend(self, data: bytes) -> None:
        match self._need:
            case _Need.LONG_NAME:
                self._extensions.set_path(_text(data))
            case _Need.LONG_TARGET:
                self._extensions.set_target(_text(data))
            case _Need.PAX:
                self._apply(_pax_records(data))
            case _:
                _check_global(_pax_records(data))
                # It precedes no particular member: the archive may end after it.
                self._extensions.seen = self._extensions != _Extensions(seen=True)

    def _apply(self, records: dict[bytes, bytes]) -> None:
        if any(key.startswith(_SPARSE) for key in records):
            raise InvalidImage("sparse files in tar archives are not supported")
        if b"path" in records:
            self._extensions.set_path(_no_nul(records[b"path"]))
        if b"linkpath" in records:
            self._extensions.set_target(_no_nul(records[b"linkpath"]))
        if b"size" in records:
            self._extensions.size = _decimal(records[b"size"])

    def _expect(self, start: int, need: _Need = _Need.HEADER, length: int = BLOCK) -> None:
        self._next, self._need, self._length = start, need, length


def _once(known: bytes | None, value: bytes) -> bytes:
    # Programs differ in which of two names wins.
    if known is not None and known != value:
        raise InvalidImage(f"a tar member with two names: {known[:80]!r} and {value[:80]!r}")
    return value


def _check_sum(block: bytes) -> None:
    stated = _number(block[148:156], "checksum")
    blanked = block[:148] + b" " * 8 + block[156:]
    # Some old programs computed the sum of signed bytes.
    if stated not in (sum(blanked), sum(byte - 256 if byte > 127 else byte for byte in blanked)):
        raise InvalidImage("not a tar header: its checksum is wrong")


def _number(text: bytes, what: str) -> int:
    """Parse a number in octal or in GNU's base 256."""
    if text[0] & 0x80:
        number = int.from_bytes(text[1:], "big")
        if text[0] != 0x80 or number >= _MAX_SIZE:
            raise InvalidImage(f"a tar header with a {what} that is negative or too large")
        return number
    digits, _, rest = text.partition(b"\0")
    digits = digits.strip(b" ")
    if rest.strip(b"\0 ") or not _OCTAL.fullmatch(digits):
        raise InvalidImage(f"a tar header with a malformed {what}: {text!r}")
    return int(digits or b"0", 8)


def _decimal(text: bytes) -> int:
    if not text.isdigit() or len(text) > 19 or int(text) >= _MAX_SIZE:
        raise InvalidImage(f"a pax header with a malformed size: {text[:40]!r}")
    return int(text)


def _text(data: bytes) -> bytes:
    return data.partition(b"\0")[0]


def _no_nul(value: bytes) -> bytes:
    if not value or b"\0" in value:
        raise InvalidImage("a pax header with an empty name, or one with a zero byte")
    return value


def _header_name(block: bytes) -> bytes:
    name, prefix = _text(block[:100]), _text(block[345:500])
    # GNU and v7 headers use ustar's prefix field for other data.
    return prefix + b"/" + name if prefix and block[257:263] == _USTAR else name


def _pax_records(data: bytes) -> dict[bytes, bytes]:
    """Parse the records `length key=value\\n` of a pax header."""
    records: dict[bytes, bytes] = {}
    position = 0
    while position < len(data):
        # The length counts itself and the newline (POSIX pax): a record must end in one, within the header, or a value
        # could hide further records that another program would read.
        found = _PAX_RECORD.match(data, position)
        stop = position + int(found[1]) if found else 0
        if found is None or stop > len(data) or stop <= found.end() or data[stop - 1] != 10:
            raise InvalidImage("malformed pax header")
        key, equals, value = data[found.end() : stop - 1].partition(b"=")
        if not equals or not key:
            raise InvalidImage("malformed pax header")
        records[key] = value
        position = stop
    return records


def _check_global(records: dict[bytes, bytes]) -> None:
    # A global value would apply to all members, and some programs ignore it.
    named = [key for key in records if key in (b"path", b"linkpath", b"size")]
    if named or any(key.startswith(_SPARSE) for key in records):
        raise InvalidImage("a global pax header that names members")


def _path(name: bytes, kind: MemberKind) -> str:
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    if not parts and kind is MemberKind.DIRECTORY:
        return ""
    # Refused, not repaired: programs repair such paths differently.
    if not parts or name.startswith(b"/") or b".." in parts:
        raise InvalidImage(
            f"unsafe path in an archive: {name[:200]!r}",
            hint="Paths are relative and have no '..'.",
        )
    if len(name) > MAX_PATH or len(parts) > MAX_DEPTH:
        raise InvalidImage(
            f"a path of {len(name)} bytes and {len(parts)} directories in an archive"
        )
    return b"/".join(parts).decode("utf-8", "surrogateescape")


def _target(target: bytes, kind: MemberKind) -> str:
    if kind is MemberKind.HARDLINK:
        return _path(target, kind)
    if kind is not MemberKind.SYMLINK:
        return ""
    if not target or len(target) > MAX_PATH:
        raise InvalidImage(f"a symbolic link to {target[:80]!r}")
    return target.decode("utf-8", "surrogateescape")
