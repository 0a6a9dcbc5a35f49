"""Which pins came from wishes, kept beside the store: so that a wish taken away while no agent ran ends its pin too.

Pins made by hand aren't in it and stay. Lost, it only means that pins stay which nobody wants any more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cache_agent.store.disk import Disk, is_plain_file, reading
from modelimage import canonical
from modelimage.digest import Digest
from modelimage.errors import InvalidImage, WeightyardError

FILE_NAME: Final = "wanted-pins.json"


class ManagedPins:
    """The set of models pinned for wishes, durable."""

    def __init__(self, root: Path, disk: Disk) -> None:
        self._path, self._disk = root / FILE_NAME, disk
        self.keys = self._read()

    def add(self, key: Digest) -> None:
        """Note before pinning. Raises NoSpace, NotWritable, DiskFailed."""
        self._write(self.keys | {key})

    def drop(self, key: Digest) -> None:
        """Note after unpinning."""
        self._write(self.keys - {key})

    def _write(self, keys: frozenset[Digest]) -> None:
        if keys == self.keys:
            return
        data = canonical.to_bytes({"pinned": sorted(str(key) for key in keys)})
        self._disk.write_durable(self._path, data)
        self.keys = keys

    def _read(self) -> frozenset[Digest]:
        if not is_plain_file(self._path):
            return frozenset()
        with reading(self._path):
            data = self._path.read_bytes()
        try:
            document = canonical.parse(data, what="the pins of wishes")
            return frozenset(Digest.parse(text) for text in document["pinned"])
        except (InvalidImage, KeyError, TypeError, WeightyardError):
            return frozenset()
