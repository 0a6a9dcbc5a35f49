"""Pins and unpins for desired models, and records which pins are its own.

By the record they are removed when a CachedModel was deleted while the agent was down. Pins made by hand aren't
recorded and stay. If the file is lost, pins stay that no desired model needs any more.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from cache_agent.observability.events import EvictionReason
from cache_agent.store.disk import is_plain_file, read_plain, reading
from cache_agent.store.roots import Roots
from modelimage import canonical
from modelimage.digest import Digest
from modelimage.errors import InUse, InvalidImage, NotFound, WeightyardError

FILE_NAME: Final = "managed-pins.json"


class ManagedPins:
    """The models that are pinned for desired models. Methods raise NoSpace, NotWritable, DiskFailed."""

    def __init__(self, store: Roots) -> None:
        self._store = store
        self._path, self._disk = store.first.paths.root / FILE_NAME, store.first.disk
        self.keys = self._read()

    def pin(self, key: Digest) -> None:
        """Pin a model; one that is gone is skipped."""
        # Recorded first: after a crash in between, a pin without a record would seem to be made by hand, and stay.
        self._write(self.keys | {key})
        self._set(key, pinned=True)

    def unpin(self, key: Digest) -> None:
        """Unpin a model; one that is gone is skipped."""
        self._set(key, pinned=False)
        self._write(self.keys - {key})

    def remove(self, key: Digest) -> None:
        """Remove a model, our own pin with it. One that is in use by now, pinned by hand, or gone is skipped."""
        with suppress(InUse, NotFound):
            unpin = key in self.keys
            self._store.models.remove(key, unpin=unpin, reason=EvictionReason.PREWARMING)
            self._write(self.keys - {key})

    def _set(self, key: Digest, *, pinned: bool) -> None:
        with suppress(NotFound):
            self._store.models.pin(key, pinned=pinned)

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
            data = read_plain(self._path)
        try:
            document = canonical.parse(data, what="managed pins")
            return frozenset(Digest.parse(text) for text in document["pinned"])
        except (InvalidImage, KeyError, TypeError, WeightyardError):
            return frozenset()
