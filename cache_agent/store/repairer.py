"""Local repair of an open store: keeps correct chunks, puts whole copies in place, sets aside what can't be repaired.

A damaged file is never written to, since servers may have it mapped. A whole copy replaces its name in `files/`, then
in every model; a crash in between leaves models on the old inode, which the checker reports and `relink` repairs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from blake3 import blake3

from cache_agent.chunks import chunk_range
from cache_agent.errors import DiskFailed
from cache_agent.store.disk import READ_ONLY_FILE, Disk, same_file, status_of
from cache_agent.store.ledger import Ledger
from cache_agent.store.links import ModelLinks, find_record
from cache_agent.store.partials import Partial, open_for_reading, read_range
from cache_agent.store.paths import StorePaths
from cache_agent.store.removal import Holds
from modelimage.digest import Digest
from modelimage.errors import NotWritable

# Imported where a record is read: most commands read none, and foreign images have many modules.
if TYPE_CHECKING:
    from modelimage.foreign import AnyRecord

FileState = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class StoreRepairer:
    """Repairs one store without fetching anything. `names`: see `Publisher`."""

    paths: StorePaths
    disk: Disk
    ledger: Ledger
    links: ModelLinks
    holds: Holds
    names: threading.RLock

    def salvage(self, partial: Partial, pause: Callable[[int], None]) -> None:
        """Copy the correct chunks of a damaged file into its partial."""
        source = self.paths.file(partial.file.digest)
        # A file that is gone, or a link in its place, has nothing to keep.
        with suppress(NotWritable), open_for_reading(source) as fd:
            for index in partial.missing():
                self._salvage_chunk(partial, fd, index, pause)

    def _salvage_chunk(
        self, partial: Partial, fd: int, index: int, pause: Callable[[int], None]
    ) -> None:
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
            return
        if hashed.hexdigest() == partial.file.chunks[index]:
            partial.mark(index)

    def relink(self, digest: Digest) -> int:
        """Make every model's name of a file a hard link to the store's inode; returns the number repaired."""
        target, mended = self.paths.file(digest), 0
        # A model that is removed meanwhile would be half linked again.
        with self.names:
            for key in self.ledger.models_of(digest):
                for path in self._names(key, digest):
                    if not same_file(path, target):
                        self.links.relink(path, target)
                        mended += 1
        return mended

    def protect(self, path: Path) -> None:
        """Remove write permission from a file."""
        self.disk.chmod(path, READ_ONLY_FILE)

    def set_aside(self, digest: Digest, seen: FileState | None) -> list[Digest]:
        """Quarantine a file beyond repair and its models, unless one is leased or a running pull needs the file.

        `seen`: its state when it was found damaged; another file that has its name since then stays. The models' other
        files stay too, for the next pull. Returns the models set aside.
        """
        with self.names, self.ledger.exclusive():
            if self.state_of(digest) != seen:
                return []
            keys = self.ledger.models_of(digest)
            # A running server reads the file anyway, and a running pull has checked it: its name stays until both end.
            if digest in self.holds or any(self.ledger.leases(key) for key in keys):
                return []
            with self.ledger.transaction():
                for key in keys:
                    self.ledger.drop_model(key)
                self.ledger.drop_file(digest)
            for key in keys:
                self._keep_journal(key)
                self.links.set_aside(self.paths.model(key))
            self.links.set_aside(self.paths.file(digest))
        return keys

    def state_of(self, digest: Digest) -> FileState | None:
        """What tells a stored file from one that replaces it; None when there is none. Raises DiskFailed."""
        status = status_of(self.paths.file(digest))
        # The number of a removed file may be given to the next one.
        return (status.st_ino, status.st_mtime_ns, status.st_size) if status else None

    def relist(self) -> int:
        """Make the ledger's file list of every model match its record; returns the number of models corrected."""
        mended = 0
        for key in self.ledger.model_keys():
            record = self._record(key)
            if record is None:
                continue  # set aside by `drop_broken_models`
            with self.ledger.transaction():
                model = self.ledger.model(key)
                listed = {file.digest for file in self.ledger.model_files(key)}
                # The model may have been removed since its key was listed.
                if model and listed != {file.digest for file in record.files}:
                    self.ledger.put_model(model, record)
                    mended += 1
        return mended

    def mend_models(self) -> int:
        """Put right the directories of models whose files are all there; returns how many names were wrong."""
        mended = 0
        for key in self.ledger.model_keys():
            with self.names:
                record = self._record(key)
                # The model may have been removed since its key was listed.
                if (
                    record is not None
                    and self.ledger.has_model(key)
                    and self.links.has_files(record)
                ):
                    mended += self.links.mend(record, self.paths.model(key))
        return mended

    def drop_broken_models(self) -> list[Digest]:
        """Set aside models that lack files and aren't leased, for the next pull to rebuild; returns their keys."""
        # Outside the lock: this reads every model's record.
        suspects = [key for key in self.ledger.model_keys() if not self._is_whole(key)]
        with self.names, self.ledger.exclusive():
            # Again: a suspect may have been leased, removed or pulled again meanwhile.
            broken = [key for key in suspects if self._is_idle(key) and not self._is_whole(key)]
            with self.ledger.transaction():
                for key in broken:
                    self.ledger.drop_model(key)
            for key in broken:
                self._keep_journal(key)
                self.links.set_aside(self.paths.model(key))
        return broken

    def _is_idle(self, key: Digest) -> bool:
        """Whether a model is stored and not leased."""
        return self.ledger.has_model(key) and not self.ledger.leases(key)

    def _is_whole(self, key: Digest) -> bool:
        record, directory = self._record(key), self.paths.model(key)
        return record is not None and self.links.is_whole(record, directory)

    def _record(self, key: Digest) -> AnyRecord | None:
        """A model's record, from whichever of its two places has it; None when neither does."""
        return find_record(self.paths, key)

    def _keep_journal(self, key: Digest) -> None:
        # Until the next pull uses them, recovery keeps the model's intact files only if a journal names them.
        record = self._record(key)
        if record is not None:
            self.disk.write_small(self.paths.journal(key), record.to_bytes())

    def _names(self, key: Digest, digest: Digest) -> list[Path]:
        record, directory = self._record(key), self.paths.model(key)
        files = record.files if record else ()
        return [directory / file.path for file in files if file.digest == digest]
