"""How bytes become visible: a file after its sha256 was computed here, a model when all its files are there.

Both follow one order: verified, durable, renamed, directory durable, then told to the ledger. A crash between any
two leaves either nothing visible or something complete, and `recovery` settles the rest at the next start.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cache_agent.store.disk import Disk, is_plain_file, reading
from cache_agent.store.ledger import Ledger
from cache_agent.store.partials import Partial
from cache_agent.store.paths import StorePaths
from cache_agent.store.values import Model, Origin, StoredFile
from modelimage.digest import Digest
from modelimage.errors import DigestMismatch
from modelimage.foreign import AnyRecord, parse_record
from modelimage.paths import RECORD_NAME, parents

_HINT = "The image's record doesn't describe its files: build and push the image again."


@dataclass(frozen=True, slots=True)
class Publisher:
    """Makes files and models visible. `clock` gives seconds since the epoch."""

    paths: StorePaths
    disk: Disk
    ledger: Ledger
    clock: Callable[[], float]

    def admit(
        self, partial: Partial, computed: Digest, repository: str | None, *, replace: bool = False
    ) -> None:
        """Let a complete file into `files/`. `computed` is the sha256 of its bytes, computed on this node.

        `replace` puts it in the place of a damaged one. Raises DigestMismatch when that isn't what the
        record claims; the partial is then discarded.
        """
        file = partial.file
        if computed != file.digest or partial.missing():
            partial.discard()
            raise DigestMismatch(
                f"{file.path}: the record promises {file.digest}, the bytes are {computed}",
                hint=_HINT,
            )
        partial.seal()
        target = self.paths.file(file.digest)
        self.disk.mkdir(target.parent)
        with self.ledger.transaction():
            if is_plain_file(target) and not replace:
                self.disk.unlink(partial.path)
            else:
                self.disk.rename(partial.path, target)
            self.ledger.put_file(
                StoredFile(file.digest, file.size, file.chunks, self.clock(), mtime_ns(target))
            )
            if repository is not None:
                self.ledger.add_proofs(repository, [file])
        self.disk.sync_directory(target.parent)
        partial.forget()

    def publish(self, record: AnyRecord, origin: Origin, fetch_seconds: float) -> Model:
        """Make a model visible; all its files are in `files/`, and stay there while the caller holds them."""
        key = record.key
        if self.ledger.model(key) is None:
            self._stage(record)
        self.disk.write_durable(self.paths.origin(key), origin.to_bytes())
        with self.ledger.transaction():
            model = self.ledger.model(key)
            if model is None:
                self.disk.rename(self.paths.staging(key), self.paths.model(key))
                model = self.model_row(record, origin.image, fetch_seconds)
                self.ledger.put_model(model, record)
            self.ledger.put_image(origin, key, self.clock())
            self.ledger.add_proofs(origin.repository, record.files)
        self.disk.sync_directory(self.paths.models)
        return model

    def model_row(self, record: AnyRecord, image: str, fetch_seconds: float = 0.0) -> Model:
        """The ledger's row of a model that becomes known now."""
        now = self.clock()
        return Model(
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
        """Put the directory of hard links together under a hidden name, durable from the bottom up."""
        staging, visible = self.paths.staging(record.key), self.paths.model(record.key)
        self.disk.remove_tree(staging)
        if visible.is_dir():
            # The ledger failed after a publish, or the disk before the end of a removal: nobody was told of it.
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
    """When a file's bytes were last written. Raises DiskFailed."""
    with reading(path):
        return path.lstat().st_mtime_ns


def read_record(path: Path) -> AnyRecord:
    """A record on disk, of our own images or derived here of a foreign one. Raises InvalidImage, DiskFailed."""
    with reading(path):
        data = path.read_bytes()
    return parse_record(data)
