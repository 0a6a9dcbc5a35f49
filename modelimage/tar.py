"""Byte-for-byte reproducible tar headers: fields to 512-byte blocks. No files, clocks or users.

POSIX ustar (IEEE 1003.1-1988) for files under 8 GiB with short names; GNU's base-256 sizes and long-name entries
otherwise, because some scanners fail on PAX headers. Everything variable is fixed: mode, owner 0, no names,
modification time 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from modelimage.errors import InvalidInput

BLOCK = 512
TRAILER = bytes(2 * BLOCK)
_USTAR_MAX_SIZE = 8 << 30
_NAME, _PREFIX = 100, 155


class EntryKind(Enum):
    """Tar type flags."""

    FILE = b"0"
    SYMLINK = b"2"
    DIRECTORY = b"5"


@dataclass(frozen=True, slots=True)
class TarEntry:
    """One member of a tar archive. `path` is relative; `size` in bytes, 0 unless it is a file."""

    path: str
    kind: EntryKind = EntryKind.FILE
    size: int = 0
    target: str = ""


def padding(size: int) -> int:
    """The number of zero bytes after a file of `size` bytes."""
    return -size % BLOCK


def header(entry: TarEntry) -> bytes:
    """The header blocks of an entry; a multiple of 512 bytes. Raises InvalidInput for an unsupported path."""
    name = entry.path.encode() + (b"/" if entry.kind is EntryKind.DIRECTORY else b"")
    target = entry.target.encode()
    if not name or b"\0" in name or name.startswith(b"/") or len(target) > _NAME:
        raise InvalidInput(f"a tar archive can't hold the path {entry.path!r}")
    # ustar's size field has 11 octal digits: sizes below 8 GiB.
    if entry.size >= _USTAR_MAX_SIZE:
        return _gnu(entry, name, target)
    split = _split(name)
    if split is None:
        return _gnu(entry, name, target)
    return _block(split[0], prefix=split[1], entry=entry, target=target, magic=b"ustar\x0000")


def _gnu(entry: TarEntry, name: bytes, target: bytes) -> bytes:
    # GNU's magic: by it readers know that base-256 sizes and long names may follow.
    magic = b"ustar  \x00"
    long_name = b""
    if len(name) > _NAME:
        body = name + b"\0"
        link = TarEntry("././@LongLink", EntryKind.FILE, len(body))
        long_name = _block(
            b"././@LongLink", prefix=b"", entry=link, target=b"", magic=magic, flag=b"L"
        )
        long_name += body + bytes(padding(len(body)))
    return long_name + _block(name[:_NAME], prefix=b"", entry=entry, target=target, magic=magic)


def _split(name: bytes) -> tuple[bytes, bytes] | None:
    """Split a path into ustar's name and prefix fields; None if it doesn't fit."""
    if len(name) <= _NAME:
        return name, b""
    # The slash between prefix and name is not stored.
    slash = name.rfind(b"/", 0, _PREFIX + 1)
    if slash > 0 and 0 < len(name) - slash - 1 <= _NAME:
        return name[slash + 1 :], name[:slash]
    return None


def _block(
    name: bytes,
    *,
    prefix: bytes,
    entry: TarEntry,
    target: bytes,
    magic: bytes,
    flag: bytes | None = None,
) -> bytes:
    # Fixed, not the file's own: the digest must not depend on the umask of the build machine.
    mode = 0o644 if entry.kind is EntryKind.FILE else 0o755
    block = b"".join(
        (
            name.ljust(_NAME, b"\0"),
            b"%07o\0" % mode,
            b"%07o\0" % 0,
            b"%07o\0" % 0,
            _size(entry.size),
            b"%011o\0" % 0,
            b" " * 8,
            flag or entry.kind.value,
            target.ljust(_NAME, b"\0"),
            magic,
            bytes(32),
            bytes(32),
            b"%07o\0" % 0,
            b"%07o\0" % 0,
            prefix.ljust(_PREFIX, b"\0"),
            bytes(12),
        )
    )
    # The checksum is computed with its own field as spaces, then inserted.
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _size(size: int) -> bytes:
    if size < _USTAR_MAX_SIZE:
        return b"%011o\0" % size
    # GNU's base 256: the high bit of the first byte marks a binary number.
    return b"\x80" + size.to_bytes(11, "big")
