"""Publishes files and models: a file after its sha256 was computed here, a model once all its files are there.

Both follow one order: verify, make durable, rename within the ledger's transaction, sync the directory. A crash between
any two steps leaves nothing visible or something complete; `recovery` settles the rest at the next start.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cache_agent.store.disk import Disk, is_plain_file, reading
from cache_agent.store.ledger import Ledger
from cache_agent.store.partials import Partial
from cache_agent.store.paths import StorePaths
from cache_agent.store.values import ImageOrigin, StoredFile, StoredModel
from modelimage.digest import Digest
from modelimage.errors import DigestMismatch
from modelimage.foreign import AnyRecord, parse_record
from modelimage.path_rules import RECORD_NAME, parents

_HINT = "The image's record doesn't describe its files: build and push the image again."


@dataclass(frozen=True, slots=True)
class Publisher:
    """Publishes files and models in one store. `clock` returns seconds since the epoch."""

    paths: StorePaths
    disk: Disk
    ledger: Ledger
    clock: Callable[[], float]

    def admit(
        self, partial: Partial, computed: Digest, repository: str | None, *, replace: bool = False
    ) -> None:
        """Move a complete file into `files/`. `computed` is the sha256 of its bytes, computed on this node.

        `replace` overwrites a damaged file. Raises DigestMismatch, after discarding the partial, when `computed`
        differs from the record's sha256.
        """
        file = partial.file
        if computed != file.digest or partial.missing():
            # The record contradicts itself: no later pull of it can use these chunks.
            partial.discard()
            raise DigestMismatch(
                f"{file.path}: the record states {file.digest}, the bytes are {computed}",
                hint=_HINT,
            )
        # Before the rename: a name in `files/` promises verified, durable bytes.
        partial.seal()
        target = self.paths.file(file.digest)
        self.disk.mkdir(target.parent)
        # Renamed under the ledger's lock: a removal must not run between the name and its row.
        with self.ledger.transaction():
            # Another pull may have admitted the same file meanwhile.
            if is_plain_file(target) and not replace:
                self.disk.unlink(partial.path)
            else:
                self.disk.rename(partial.path, target)
            self.ledger.put_file(
                StoredFile(file.digest, file.size, file.chunks, self.clock(), mtime_ns(target))
            )
            if repository is not None:
                self.ledger.add_authorizations(repository, [file])
        self.disk.sync_directory(target.parent)
        # Last, since a crash before may undo the rename: the bitmap then spares fetching the partial's chunks again.
        partial.forget()

    def publish(self, record: AnyRecord, origin: ImageOrigin, fetch_seconds: float) -> StoredModel:
        """Publish a model. Its files must be in `files/`, and held by the caller so that none is evicted meanwhile."""
        key = record.key
        if self.ledger.model(key) is None:
            self._stage(record)
        # Before the rename: without a ledger, recovery only accepts a model that has its origin.
        self.disk.write_durable(self.paths.origin(key), origin.to_bytes())
        with self.ledger.transaction():
            # Again under the lock: a concurrent pull may have published the model.
            model = self.ledger.model(key)
            if model is None:
                self.disk.rename(self.paths.staging(key), self.paths.model(key))
                model = self.model_row(record, origin.image, fetch_seconds)
                self.ledger.put_model(model, record)
            self.ledger.put_image(origin, key, self.clock())
            self.ledger.add_authorizations(origin.repository, record.files)
        self.disk.sync_directory(self.paths.models)
        return model

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
        )

    def _stage(self, record: AnyRecord) -> None:
        """Build the directory of hard links under a hidden name, made durable bottom-up."""
        staging, visible = self.paths.staging(record.key), self.paths.model(record.key)
        # Left by a pull that crashed.
        self.disk.remove_tree(staging)
        if visible.is_dir():
            # A leftover of a failed ledger commit or an interrupted removal: no caller ever received its path.
            self.disk.rename(visible, staging)
            self.disk.remove_tree(staging)
        if not is_plain_file(self.paths.record(record.key)):
            self.disk.write_durable(self.paths.record(record.key), record.to_bytes())
        directories = self._directories(record, staging)
        for directory in directories:
            self.disk.make_staging(directory)
        for file in record.files:
            self.disk.link(self.paths.file(file.digest), staging / file.path)
        self.disk.link(self.paths.record(record.key), staging / RECORD_NAME)
        for directory in reversed(directories):
            self.disk.sync_directory(directory)

    @staticmethod
    def _directories(record: AnyRecord, staging: Path) -> list[Path]:
        below = {parent for file in record.files for parent in parents(file.path)}
        return [staging, *(staging / each for each in sorted(below))]


def mtime_ns(path: Path) -> int:
    """A file's modification time. Raises DiskFailed."""
    with reading(path):
        return path.lstat().st_mtime_ns


def read_record(path: Path) -> AnyRecord:
    """Read a record: of our own image, or derived on this node from a foreign one. Raises InvalidImage, DiskFailed."""
    with reading(path):
        data = path.read_bytes()
    return parse_record(data)
