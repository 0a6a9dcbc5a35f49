"""How bytes go away: never while leased, pinned or wanted by a running pull.

The decision and the renames into `trash/` happen while no lease can be taken and no file admitted (inside the
ledger's lock); the slow unlinking happens after it. The ledger forgets first: a crash in between leaves a complete
model that the next start finds again, never a model that is there in name only.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from cache_agent.store.disk import Disk
from cache_agent.store.ledger import Ledger
from cache_agent.store.paths import StorePaths
from cache_agent.store.values import Model, StoredFile
from modelimage.digest import Digest
from modelimage.errors import InUse, NotFound


@dataclass
class Holds:
    """Files that running pulls count on. In memory: a pull doesn't outlive its process."""

    _held: Counter[Digest] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def hold(self, digests: Iterable[Digest]) -> Iterator[None]:
        """While inside, none of these files is removed."""
        held = list(digests)
        with self._lock:
            self._held.update(held)
        try:
            yield
        finally:
            with self._lock:
                self._held.subtract(held)
                self._held = +self._held

    def __contains__(self, digest: Digest) -> bool:
        with self._lock:
            return self._held[digest] > 0


@dataclass
class Remover:
    """Takes models and unreferenced files out of a store."""

    paths: StorePaths
    disk: Disk
    ledger: Ledger
    holds: Holds
    _serial: Iterator[int] = field(default_factory=count)

    def remove_model(self, key: Digest, *, unpin: bool = False) -> int:
        """Remove a model and the files that only it held; bytes freed. Raises NotFound, InUse."""
        with self.ledger.exclusive():
            with self.ledger.transaction():
                model = self.ledger.model(key)
                if model is None:
                    raise NotFound(f"no model {key} in the store", hint="See `weightyard ls`.")
                refuse_if_held(model, unpin=unpin)
                files = self.ledger.model_files(key)
                self.ledger.drop_model(key)
                orphans = [file for file in files if self._is_orphan(file.digest)]
                for file in orphans:
                    self.ledger.drop_file(file.digest)
            trashed = self._to_trash([self.paths.model(key), *map(self._path, orphans)])
        self.disk.unlink(self.paths.origin(key))
        self.disk.unlink(self.paths.record(key))
        self.disk.unlink(self.paths.pin(key))
        self._empty(trashed, {self.paths.models})
        return sum(file.size for file in orphans)

    def remove_orphans(self, keep: Container[Digest]) -> int:
        """Remove the files that no model, running pull or `keep` wants; bytes freed."""
        with self.ledger.exclusive():
            with self.ledger.transaction():
                orphans = [
                    file
                    for file in self.ledger.unreferenced_files()
                    if file.digest not in self.holds and file.digest not in keep
                ]
                for file in orphans:
                    self.ledger.drop_file(file.digest)
            trashed = self._to_trash([self._path(file) for file in orphans])
        self._empty(trashed, set())
        return sum(file.size for file in orphans)

    def _is_orphan(self, digest: Digest) -> bool:
        return digest not in self.holds and not self.ledger.models_of(digest)

    def _path(self, file: StoredFile) -> Path:
        return self.paths.file(file.digest)

    def _to_trash(self, paths: Iterable[Path]) -> list[Path]:
        """Rename out of sight; fast, so it is done while nobody can take a lease or admit a file."""
        trashed = []
        for path in paths:
            target = self.paths.trash / f"{path.name}.{next(self._serial)}"
            if path.exists():
                self.disk.rename(path, target)
                trashed.append(target)
        return trashed

    def _empty(self, trashed: Iterable[Path], changed: set[Path]) -> None:
        for directory in changed:
            self.disk.sync_directory(directory)
        for path in trashed:
            self.disk.remove_tree(path)


def refuse_if_held(model: Model, *, unpin: bool = False) -> None:
    """Raises InUse naming who holds a model."""
    holders = [str(lease.holder) for lease in model.leases]
    if holders:
        raise InUse(
            f"model {model.key.short} ({model.image}) is leased by {', '.join(holders[:5])}",
            hint="Stop what uses it first, or release the lease with `weightyard lease release`.",
        )
    if model.pinned and not unpin:
        raise InUse(
            f"model {model.key.short} ({model.image}) is pinned",
            hint="Unpin it first: `weightyard pin --remove`.",
        )
