"""Space set aside for the ledger: a full filesystem must not keep a store from opening and evicting.

Evicting writes to the ledger before it frees a byte. A file of allocated blocks, removed when the ledger finds no room
and allocated again afterwards, is what it then writes to.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cache_agent.store.disk import Disk, plain_size, reading
from modelimage.errors import NoSpace

# The log of the removal of several models with thousands of files.
BYTES: Final = 4 << 20
# Of a small filesystem, no more than this part.
_PART: Final = 8
# Less holds no transaction.
_LEAST: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class LedgerReserve:
    """The reserve of one store. Raises DiskFailed, NotWritable."""

    path: Path
    disk: Disk

    def release(self) -> bool:
        """Free the space; False when there is none to free."""
        there = bool(plain_size(self.path))
        self.disk.remove_tree(self.path)
        return there

    def restore(self) -> None:
        """Set the space aside again, or as much of it as there is room for."""
        size = self._size()
        while size >= _LEAST:
            try:
                os.close(self.disk.open_partial(self.path, size))
            except NoSpace:
                # An opening on a full disk has used a part of it.
                self.release()
                size //= 2
            else:
                return

    @contextmanager
    def released(self) -> Iterator[None]:
        """Free the space while inside."""
        self.release()
        try:
            yield
        finally:
            self.restore()

    def _size(self) -> int:
        with reading(self.path.parent):
            disk = os.statvfs(self.path.parent)
        return min(BYTES, disk.f_blocks * disk.f_frsize // _PART)
