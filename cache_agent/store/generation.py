"""The generation marker: how many changes the ledger has committed, kept beside it, to notice that its tail was lost.

SQLite accepts a ledger whose log was deleted, cut or flipped: it shows an older state as if nothing had happened. The
marker is written after each commit and never before, so a marker ahead of the ledger proves the loss. It isn't
synced: a power loss may set it back, which proves nothing.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Final

from cache_agent.store.disk import reading

_NUMBER_BYTES: Final = 8
_SUM_BYTES: Final = 4


class GenerationMarker:
    """One open marker file. Raises DiskFailed, NotWritable."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with reading(path):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def read(self) -> int:
        """The last number written; 0 when there is none, or a damaged one."""
        with reading(self._path):
            data = os.pread(self._fd, _NUMBER_BYTES + _SUM_BYTES, 0)
        return decode(data)

    def write(self, number: int) -> None:
        """Note a committed generation."""
        with reading(self._path):
            os.pwrite(self._fd, encode(number), 0)

    def close(self) -> None:
        """Close the file. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def encode(number: int) -> bytes:
    """The marker file's bytes: a little-endian number and its CRC-32. Law: `decode(encode(n)) == n`."""
    data = number.to_bytes(_NUMBER_BYTES, "little")
    return data + zlib.crc32(data).to_bytes(_SUM_BYTES, "little")


def decode(data: bytes) -> int:
    """The number in a marker file's bytes; 0 for damaged ones."""
    number = int.from_bytes(data[:_NUMBER_BYTES], "little")
    return number if data == encode(number) else 0
