"""Publishes files and models: a file after its sha256 was computed here, a model once all its files are there.

Both follow one order: verify, make durable, rename within the ledger's transaction, sync the directory. A crash between
any two steps leaves nothing visible or something complete; `recovery` settles the rest at the next start.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cache_agent.errors import Vanished
from cache_agent.store.disk import Disk, is_plain_file, is_real_directory, reading
from cache_agent.store.ledger import Ledger
from cache_agent.store.links import ModelLinks
from cache_agent.store.partials import Partial
from cache_agent.store.paths import StorePaths
from cache_agent.store.removal import GROUP_FILES
from cache_agent.store.values import ImageOrigin, StoredFile, StoredModel
from modelimage.digest import Digest
from modelimage.errors import DigestMismatch, WeightyardError

# Imported where a record is read: most commands read none, and foreign images have many modules.
if TYPE_CHECKING:
    from modelimage.foreign import AnyRecord

# From this many files on, one flush of the whole filesystem costs less than one for each.
_TOGETHER: Final = 16
_HINT = "The image's record doesn't describe its files: build and push the image again."


@dataclass(frozen=True, slots=True)
class CompletedFile:
    """A complete file to move into `files/`. `computed` is the sha256 of its bytes, computed on this node.

    `repository` is None for a file from elsewhere: then it proves no access to a repository. `replace` overwrites a
    damaged file.
    """

    partial: Partial
    computed: Digest
    repository: str | None
    replace: bool = False


@dataclass(frozen=True, slots=True)
class Publisher:
    """Publishes files and models in one store. `clock` returns seconds since the epoch.

    `names` is held while the names of models are written, linked or removed; always before the ledger's lock.
    """

    paths: StorePaths
    disk: Disk
    ledger: Ledger
    links: ModelLinks
    names: threading.RLock
    clock: Callable[[], float]

    def admit(self, completed: Sequence[CompletedFile]) -> None:
        """Move complete files into `files/`, all in one transaction.

        Raises DigestMismatch, after discarding the partial, when a file's bytes aren't what its record promises, and
        Vanished for a partial that is gone; the other files are admitted all the same.
        """
        if not completed:
            return
        problems: list[WeightyardError] = []
        good = [each for each in completed if self._is_right(each, problems)]
        # Before the renames: a name in `files/` promises verified, durable bytes, and their mode.
        self._seal(good)
        directories = {self.paths.file(each.partial.file.digest).parent for each in good}
        self.disk.make_directories(directories)
        # Renamed under the ledger's lock: a removal must not run between the name and its row.
        with self.ledger.transaction():
            for each in good:
                try:
                    self._rename(each)
                except Vanished as error:
                    problems.append(error)
        self._sync(directories)
        for each in good:
            # Last, since a crash before may undo the rename: the bitmap then spares fetching the chunks again.
            each.partial.forget()
        if problems:
            raise problems[0]

    @staticmethod
    def _is_right(completed: CompletedFile, problems: list[WeightyardError]) -> bool:
        partial, computed = completed.partial, completed.computed
        file = partial.file
        if computed == file.digest and not partial.missing():
            return True
        # The record contradicts itself: no later pull of it can use these chunks.
        partial.discard()
        problems.append(
            DigestMismatch(
                f"{file.path}: the record states {file.digest}, the bytes are {computed}",
                hint=_HINT,
            )
        )
        return False

    def _seal(self, completed: Sequence[CompletedFile]) -> None:
        together = len(completed) >= _TOGETHER
        for each in completed:
            each.partial.seal(durable=not together)
        if together:
            self.disk.sync_filesystem(self.paths.partial)

    def _sync(self, directories: Collection[Path]) -> None:
        if len(directories) >= _TOGETHER:
            self.disk.sync_filesystem(self.paths.files)
            return
        for each in directories:
            self.disk.sync_directory(each)

    def _rename(self, completed: CompletedFile) -> None:
        partial, file = completed.partial, completed.partial.file
        target = self.paths.file(file.digest)
        # Another pull may have admitted the same file meanwhile.
        if is_plain_file(target) and not completed.replace:
            self.disk.unlink(partial.path)
        else:
            self.links.clear(target)
            self.disk.rename(partial.path, target)
        self.ledger.put_file(
            StoredFile(file.digest, file.size, file.chunks, self.clock(), mtime_ns(target))
        )
        if completed.repository is not None:
            self.ledger.add_authorizations(completed.repository, [file])

    def publish(self, record: AnyRecord, origin: ImageOrigin, fetch_seconds: float) -> StoredModel:
        """Publish a model, or mend the directory of one that is published already.

        Its files must be in `files/`, and held by the caller so that none is evicted meanwhile. Raises Vanished for one
        that isn't there all the same.
        """
        key, directory = record.key, self.paths.model(record.key)
        # Outside the lock: others must not wait while tens of thousands of names are looked at.
        self.links.require_files(record)
        is_whole = self.links.is_right(record, directory)
        # Until the end: a removal of this model unlinks names that this writes.
        with self.names:
            if self.ledger.has_model(key):
                # 'Done' means whole, also for a directory that was changed by hand since.
                if not is_whole:
                    self.links.mend(record, directory)
            else:
                self._stage(record)
            # Before the rename: without a ledger, recovery only accepts a model that has its origin.
            self._keep_origin(key, origin)
            # In groups, and before: nothing else needs them in the model's own transaction.
            for start in range(0, len(record.files), GROUP_FILES):
                group = record.files[start : start + GROUP_FILES]
                self.ledger.add_authorizations(origin.repository, group)
            with self.ledger.transaction():
                model = self.ledger.model(key)
                if model is None:
                    # Before the commit: recovery finds a directory without a row again by its record and origin;
                    # a row without a directory would promise a model that isn't there.
                    self.disk.rename(self.paths.staging(key), directory)
                    model = self.model_row(record, origin.image, fetch_seconds)
                    self.ledger.put_model(model, record)
                self.ledger.put_image(origin, key, self.clock())
            # Before the pull is told: a model that was reported must survive a power loss.
            self.disk.sync_directory(self.paths.models)
        return model

    def describe(self, record: AnyRecord, origin: ImageOrigin) -> None:
        """Write a stored model's record and publish record again, if it is still stored."""
        with self.names:
            if self.ledger.has_model(record.key):
                self.links.keep_record(record)
                self._keep_origin(record.key, origin)

    def _keep_origin(self, key: Digest, origin: ImageOrigin) -> None:
        self.links.clear(self.paths.origin(key))
        self.disk.write_durable(self.paths.origin(key), origin.to_bytes())

    def model_row(self, record: AnyRecord, image: str, fetch_seconds: float = 0.0) -> StoredModel:
        """The ledger's row of a new model."""
        now = self.clock()
        return StoredModel(
            key=record.key,
            path=self.paths.model(record.key),
            variant=record.variant,
            image=image,
            size=record.size,
            files=len(record.files),
            added=now,
            last_used=now,
            uses=1.0,
            fetch_seconds=fetch_seconds,
            # Pinned before it was set aside or the ledger was lost.
            pinned=is_plain_file(self.paths.pin(record.key)),
        )

    def _stage(self, record: AnyRecord) -> None:
        """Build the directory of hard links under a hidden name."""
        staging, visible = self.paths.staging(record.key), self.paths.model(record.key)
        # Left by a pull that crashed.
        self.disk.remove_tree(staging)
        if is_real_directory(visible):
            # A leftover of a failed ledger commit or an interrupted removal: no caller ever received its path.
            self.disk.rename(visible, staging)
            self.disk.remove_tree(staging)
        # A link or file in its place.
        self.links.set_aside(visible)
        self.links.lay(record, staging)


def mtime_ns(path: Path) -> int:
    """A file's modification time. Raises DiskFailed."""
    with reading(path):
        return path.lstat().st_mtime_ns
