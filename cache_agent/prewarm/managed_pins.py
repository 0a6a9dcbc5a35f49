"""Records which pins the reconciler set, so that it can remove them when a CachedModel was deleted while it was down.

Pins made by hand aren't recorded and stay. If the file is lost, pins stay that no desired model needs any more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cache_agent.store.disk import Disk, is_plain_file, reading
from modelimage import canonical
from modelimage.digest import Digest
from modelimage.errors import InvalidImage, WeightyardError

FILE_NAME: Final = "managed-pins.json"


class ManagedPins:
    """The durable set of models that are pinned for desired models."""

    def __init__(self, root: Path, disk: Disk) -> None:
        self._path, self._disk = root / FILE_NAME, disk
        self.keys = self._read()

    def add(self, key: Digest) -> None:
        """Record a pin; call it before pinning. Raises NoSpace, NotWritable, DiskFailed."""
        self._write(self.keys | {key})

    def drop(self, key: Digest) -> None:
        """Forget a pin; call it after unpinning. Raises NoSpace, NotWritable, DiskFailed."""
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
            document = canonical.parse(data, what="managed pins")
            return frozenset(Digest.parse(text) for text in document["pinned"])
        except (InvalidImage, KeyError, TypeError, WeightyardError):
            return frozenset()
