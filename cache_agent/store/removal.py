"""Removes models and files: never while they are leased, pinned or used by a running pull.

The decision and the renames of every name into `trash/` happen inside the ledger's lock, while no lease can be taken
and no file admitted; the slow unlinking follows outside, where nothing has these names any more. The ledger's rows go
first: a crash in between leaves a complete model, found again at the next start, never a row without its model. A
model's files follow it in groups; those that a crash leaves are unreferenced, and the next start removes them.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Final, TypeVar

from cache_agent.store.disk import Disk, listed, status_of
from cache_agent.store.ledger import Ledger
from cache_agent.store.links import descriptions
from cache_agent.store.paths import StorePaths
from cache_agent.store.reserve import LedgerReserve
from cache_agent.store.values import StoredFile, StoredModel
from modelimage.digest import Digest
from modelimage.errors import InUse, NoSpace, NotFound

T = TypeVar("T")
# Removed under one lock of the ledger.
GROUP_FILES: Final = 256


@dataclass
class Holds:
    """Files that running pulls need. In memory only: a pull doesn't outlive its process."""

    _held: Counter[Digest] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def hold(self, digests: Iterable[Digest]) -> Iterator[None]:
        """Protect files from removal while inside."""
        held = list(digests)
        with self._lock:
            self._held.update(held)
        try:
            yield
        finally:
            with self._lock:
                self._held.subtract(held)
                # Drops zero counts, or the counter would grow with every pull.
                self._held = +self._held

    def __contains__(self, digest: Digest) -> bool:
        with self._lock:
            return self._held[digest] > 0


@dataclass
class Remover:
    """Removes models and unreferenced files from a store. `names`: see `Publisher`.

    `freeing`, taken first, is held from a model's row to the last of its files, so that nobody plans an eviction in
    between: the model is no candidate any more, its files still count, and a second one would go for the same bytes.
    """

    paths: StorePaths
    disk: Disk
    ledger: Ledger
    holds: Holds
    names: threading.RLock
    reserve: LedgerReserve
    freeing: threading.RLock
    _serial: Iterator[int] = field(default_factory=count)

    def remove_model(self, key: Digest, *, unpin: bool = False) -> int:
        """Remove a model and the files that only it contains; returns the bytes freed. Raises NotFound, InUse."""
        with self.freeing:
            files = self._with_room(lambda: self._remove_model(key, unpin=unpin))
            return self._remove_files(files, keep=())

    def remove_orphans(self, keep: Container[Digest]) -> int:
        """Remove files that no model, running pull or `keep` references; returns the bytes freed."""
        return self._remove_files(self.ledger.unreferenced_files(), keep)

    def remove_descriptions(self) -> None:
        """Remove the records of models that are neither here nor set aside for the pull that a journal stands for."""
        # `names`: a pull that publishes writes them before its model's row.
        with self.names, self.ledger.exclusive():
            kept = {key.hex for key in self.ledger.model_keys()}
            kept |= {each.stem for each in listed(self.paths.partial) if each.suffix == ".json"}
            gone = [each for each in descriptions(self.paths) if each.stem not in kept]
            trashed = self._to_trash(gone)
        self._empty(trashed, set())

    def _with_room(self, remove: Callable[[], T]) -> T:
        try:
            return remove()
        except NoSpace:
            # The ledger must be written before a byte is freed.
            if not self.reserve.release():
                raise
        try:
            return remove()
        finally:
            self.reserve.restore()

    def _remove_model(self, key: Digest, *, unpin: bool) -> list[StoredFile]:
        """Remove a model without its files, which are returned."""
        # `names`: a pull must not publish the model anew between its row and the last of its names.
        # Readers are excluded too: none may see a model's row without its directory.
        with self.names, self.ledger.exclusive():
            with self.ledger.transaction():
                model = self.ledger.model(key)
                if model is None:
                    raise NotFound(f"no model {key} in the store", hint="See `weightyard ls`.")
                refuse_if_held(model, unpin=unpin)
                files = self.ledger.model_files(key)
                self.ledger.drop_model(key)
            # The directory first: what describes a model must be there for as long as its directory is.
            trashed = self._to_trash(
                [
                    self.paths.model(key),
                    self.paths.origin(key),
                    self.paths.record(key),
                    self.paths.pin(key),
                ]
            )
        self._empty(trashed, {self.paths.models, self.paths.pins})
        return files

    def _remove_files(self, files: Sequence[StoredFile], keep: Container[Digest]) -> int:
        """Remove those files that nothing needs; returns the bytes freed."""
        freed = 0
        # In groups: of an image's tens of thousands of files, others wait for one group at most.
        for start in range(0, len(files), GROUP_FILES):
            group = files[start : start + GROUP_FILES]
            freed += self._with_room(partial(self._remove_group, group, keep))
        return freed

    def _remove_group(self, files: Sequence[StoredFile], keep: Container[Digest]) -> int:
        with self.ledger.exclusive():
            with self.ledger.transaction():
                # Decided here: since they were listed, a pull may have taken hold of some.
                orphans = [
                    file
                    for file in files
                    if self._is_orphan(file.digest) and file.digest not in keep
                ]
                for file in orphans:
                    self.ledger.drop_file(file.digest)
            # Still inside: a publish that links the same file waits, and then finds that it is gone.
            trashed = self._to_trash([self._path(file) for file in orphans])
        self._empty(trashed, set())
        return sum(file.size for file in orphans)

    def _is_orphan(self, digest: Digest) -> bool:
        return digest not in self.holds and not self.ledger.models_of(digest)

    def _path(self, file: StoredFile) -> Path:
        return self.paths.file(file.digest)

    def _to_trash(self, paths: Iterable[Path]) -> list[Path]:
        """Rename into `trash/`: fast enough to do under the ledger's lock."""
        trashed = []
        for path in paths:
            # Numbered: the same name may be trashed again before the first one is removed.
            target = self.paths.trash / f"{path.name}.{next(self._serial)}"
            if status_of(path) is not None:
                self.disk.rename(path, target)
                trashed.append(target)
        return trashed

    def _empty(self, trashed: Iterable[Path], changed: set[Path]) -> None:
        for directory in changed:
            # Before unlinking: after a crash, a half-emptied directory must not be back under the model's name.
            self.disk.sync_directory(directory)
        for path in trashed:
            self.disk.remove_tree(path)


def refuse_if_held(model: StoredModel, *, unpin: bool = False) -> None:
    """Raises InUse with the holders of a leased or pinned model."""
    holders = [str(lease.holder) for lease in model.leases]
    if holders:
        raise InUse(
            f"model {model.key.short} ({model.image}) is leased by {', '.join(holders[:5])}",
            hint=f"Stop what uses it first, or release the lease: `weightyard lease release {model.leases[0].id}`.",
        )
    if model.pinned and not unpin:
        raise InUse(
            f"model {model.key.short} ({model.image}) is pinned",
            hint=f"Unpin it first: `weightyard pin --remove {model.key.short}`.",
        )
