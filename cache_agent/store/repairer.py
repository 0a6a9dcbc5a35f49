"""Local repair of an open store: keeps correct chunks, puts whole copies in place, sets aside what can't be repaired.

A damaged file is never written to, since servers may have it mapped. A whole copy replaces its name in `files/`, then
in every model; a crash in between leaves models on the old inode, which the checker reports and `relink` repairs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from blake3 import blake3

from cache_agent.chunks import chunk_range
from cache_agent.errors import DiskFailed
from cache_agent.store.disk import READ_ONLY_FILE, Disk, is_plain_file
from cache_agent.store.ledger import Ledger
from cache_agent.store.partials import Partial, open_for_reading, read_range
from cache_agent.store.paths import StorePaths
from cache_agent.store.publisher import read_record
from cache_agent.store.recovery import same_file
from modelimage.digest import Digest
from modelimage.errors import InvalidImage
from modelimage.path_rules import RECORD_NAME
from modelimage.record import RecordFile


@dataclass(frozen=True, slots=True)
class StoreRepairer:
    """Repairs one store without fetching anything."""

    paths: StorePaths
    disk: Disk
    ledger: Ledger

    def salvage(self, partial: Partial, pause: Callable[[int], None]) -> int:
        """Copy a damaged file's correct chunks into its partial; returns the number of wrong or unreadable ones."""
        file, source = partial.file, self.paths.file(partial.file.digest)
        wrong = 0
        with open_for_reading(source) as fd:
            for index in partial.missing():
                if not self._salvage_chunk(partial, fd, index, pause):
                    wrong += 1
        return wrong if file.size else 0

    def _salvage_chunk(
        self, partial: Partial, fd: int, index: int, pause: Callable[[int], None]
    ) -> bool:
        wanted = chunk_range(partial.file.size, index)
        hashed, offset = blake3(), wanted.start
        try:
            for view in read_range(fd, self.paths.file(partial.file.digest), wanted):
                hashed.update(view)
                # Written before it is verified: only `mark` makes it count.
                partial.write(view, offset)
                offset += len(view)
                pause(len(view))
        except DiskFailed:
            # Fetched again, like a wrong chunk.
            return False
        if hashed.hexdigest() != partial.file.chunks[index]:
            return False
        partial.mark(index)
        return True

    def relink(self, digest: Digest) -> int:
        """Make every model's name of a file a hard link to the store's inode; returns the number repaired."""
        target, mended = self.paths.file(digest), 0
        for key in self.ledger.models_of(digest):
            for file, path in self._names(key, digest):
                if not same_file(path, target):
                    # Link, then rename over it: the model's file must exist at every moment.
                    fresh = path.with_name(f".{file.digest.hex}.new")
                    self.disk.unlink(fresh)
                    self.disk.link(target, fresh)
                    self.disk.rename(fresh, path)
                    self.disk.sync_directory(path.parent)
                    mended += 1
        return mended

    def protect(self, path: Path) -> None:
        """Remove write permission from a file."""
        self.disk.chmod(path, READ_ONLY_FILE)

    def set_aside(self, digest: Digest) -> list[Digest]:
        """Quarantine a file beyond repair and all models that contain it, unless one of them is leased.

        Their other files stay, for the next pull. Returns the models set aside.
        """
        with self.ledger.exclusive():
            keys = self.ledger.models_of(digest)
            idle = [key for key in keys if not self.ledger.leases(key)]
            if len(idle) < len(keys):
                # A running server reads the file anyway; its name stays until the last lease ends.
                return []
            with self.ledger.transaction():
                for key in idle:
                    self.ledger.drop_model(key)
                self.ledger.drop_file(digest)
            for key in idle:
                self._keep_journal(key)
                self._quarantine(self.paths.model(key))
            self._quarantine(self.paths.file(digest))
        return idle

    def relist(self) -> int:
        """Make the ledger's file list of every model match its record; returns the number of models corrected."""
        mended = 0
        for key in self.ledger.model_keys():
            try:
                record = read_record(self.paths.model(key) / RECORD_NAME)
            except (InvalidImage, DiskFailed):
                continue  # set aside by `drop_broken_models`
            with self.ledger.transaction():
                model = self.ledger.model(key)
                listed = {file.digest for file in self.ledger.model_files(key)}
                # The model may have been removed since its key was listed.
                if model and listed != {file.digest for file in record.files}:
                    self.ledger.put_model(model, record)
                    mended += 1
        return mended

    def drop_broken_models(self) -> list[Digest]:
        """Set aside models that lack files and aren't leased, so that the
        next pull rebuilds them; returns their keys."""
        # Outside the lock: this reads every model's record.
        suspects = [key for key in self.ledger.model_keys() if not self._is_whole(key)]
        with self.ledger.exclusive():
            # Again: a suspect may have been leased, removed or pulled again meanwhile.
            broken = [key for key in suspects if self._is_idle(key) and not self._is_whole(key)]
            with self.ledger.transaction():
                for key in broken:
                    self.ledger.drop_model(key)
            for key in broken:
                self._keep_journal(key)
                self._quarantine(self.paths.model(key))
        return broken

    def _is_idle(self, key: Digest) -> bool:
        """Whether a model is stored and not leased."""
        return self.ledger.has_model(key) and not self.ledger.leases(key)

    def _is_whole(self, key: Digest) -> bool:
        directory = self.paths.model(key)
        try:
            record = read_record(directory / RECORD_NAME)
        except (InvalidImage, DiskFailed):
            return False
        return record.key == key and all(
            same_file(directory / file.path, self.paths.file(file.digest)) for file in record.files
        )

    def _keep_journal(self, key: Digest) -> None:
        # Until the next pull uses them, recovery keeps the model's intact files only if a journal names them.
        record = self.paths.record(key)
        if is_plain_file(record):
            self.disk.write_small(self.paths.journal(key), record.read_bytes())

    def _quarantine(self, path: Path) -> None:
        if not path.exists():
            return
        # Numbered: an earlier quarantined copy must not be overwritten.
        taken = (self.paths.quarantine / f"{path.name}.{number}" for number in count())
        self.disk.rename(path, next(each for each in taken if not each.exists()))

    def _names(self, key: Digest, digest: Digest) -> list[tuple[RecordFile, Path]]:
        directory = self.paths.model(key)
        try:
            record = read_record(directory / RECORD_NAME)
        except (InvalidImage, DiskFailed):
            return []
        return [(file, directory / file.path) for file in record.files if file.digest == digest]
