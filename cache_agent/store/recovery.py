"""Recovery when a store is opened: completes or reverts every step that a crash interrupted.

The names on the disk are the truth; the ledger is adjusted to them. Half-built directories, trash and partials without
a journal are removed. Never removes a complete model, never trusts a byte that wasn't verified before it was named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cache_agent.errors import DiskFailed
from cache_agent.store.disk import Disk, is_plain_file, reading
from cache_agent.store.journal import JournalRefs, read_claims
from cache_agent.store.ledger import Ledger
from cache_agent.store.paths import STAGING_PREFIX, StorePaths
from cache_agent.store.publisher import Publisher, read_record
from cache_agent.store.values import ImageOrigin, StoredFile
from modelimage.digest import Digest
from modelimage.errors import InvalidImage, InvalidInput
from modelimage.foreign import AnyRecord
from modelimage.path_rules import RECORD_NAME


@dataclass
class Recovery:
    """The result of a recovery, for logs: counts by kind."""

    files_found: int = 0
    files_lost: int = 0
    models_found: int = 0
    models_lost: int = 0
    models_broken: int = 0
    leases_dropped: int = 0
    leftovers: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def changed(self) -> bool:
        return any(value for name, value in vars(self).items() if name != "notes")


@dataclass(frozen=True, slots=True)
class Recoverer:
    """Reconciles ledger and disk of one store."""

    paths: StorePaths
    disk: Disk
    ledger: Ledger
    publisher: Publisher
    clock: Callable[[], float]

    def run(self) -> Recovery:
        """Recover a store that is not in use yet. Raises DiskFailed, NoSpace, NotWritable."""
        done = Recovery()
        self._remove_leftovers(done)
        journals = self._journals(done)
        # In this order: a model is judged by the files found, an orphan by the models found.
        self._files(done)
        with self.ledger.transaction():
            self._models(done)
            self._leases(done)
        self._orphans(journals, done)
        return done

    def _remove_leftovers(self, done: Recovery) -> None:
        staging = [
            each for each in listed(self.paths.models) if each.name.startswith(STAGING_PREFIX)
        ]
        temporary = [
            each
            for directory in (self.paths.records, self.paths.origins, self.paths.partial)
            for each in listed(directory)
            if each.name.endswith(".tmp")
        ]
        for path in (*listed(self.paths.trash), *staging, *temporary):
            self.disk.remove_tree(path)
            done.leftovers += 1

    def _journals(self, done: Recovery) -> list[JournalRefs]:
        """Read the journals of interrupted pulls; remove the partials that none of them references."""
        journals = []
        for path in listed(self.paths.partial):
            if path.suffix == ".json":
                try:
                    journals.append(read_claims(path))
                except (InvalidImage, DiskFailed) as error:
                    # Without its journal a pull starts over; its partials are removed below.
                    done.notes.append(f"dropped an unreadable journal: {error}")
                    self.disk.unlink(path)
        claimed = {name for journal in journals for name in journal.partials}
        for path in listed(self.paths.partial):
            if path.suffix != ".json" and path.stem not in claimed:
                self.disk.remove_tree(path)
                done.leftovers += 1
        return journals

    def _files(self, done: Recovery) -> None:
        for number in range(256):
            prefix = f"{number:02x}"
            on_disk = {each.name: each for each in listed(self.paths.files / prefix)}
            known = self.ledger.file_digests(prefix)
            if on_disk.keys() == known.keys():
                # One transaction per prefix that differs: a healthy store opens without a write.
                continue
            with self.ledger.transaction():
                for name in on_disk.keys() - known.keys():
                    self._found_file(on_disk[name], done)
                for name in known.keys() - on_disk.keys():
                    # A model may still link the file's inode: then only the name was lost.
                    if not self._relink(Digest(name)):
                        self.ledger.drop_file(Digest(name))
                        done.files_lost += 1

    def _found_file(self, path: Path, done: Recovery) -> None:
        digest = parse_hex(path.name)
        if digest is None or not is_plain_file(path):
            self.disk.rename(path, self.paths.quarantine / path.name)
            done.notes.append(f"moved {path.name} to quarantine: not a file of this store")
            return
        # Its bytes weren't verified since this ledger exists: first in line for the scrubber.
        self.ledger.put_file(StoredFile(digest, path.stat().st_size, (), 0.0))
        done.files_found += 1

    def _relink(self, digest: Digest) -> bool:
        """Restore a file's name from a model directory that still links its inode."""
        for key in self.ledger.models_of(digest):
            for held in self._held_paths(key, digest):
                if is_plain_file(held):
                    self.disk.mkdir(self.paths.file(digest).parent)
                    self.disk.link(held, self.paths.file(digest))
                    self.disk.sync_directory(self.paths.file(digest).parent)
                    return True
        return False

    def _held_paths(self, key: Digest, digest: Digest) -> Iterator[Path]:
        directory = self.paths.model(key)
        try:
            record = read_record(directory / RECORD_NAME)
        except (InvalidImage, DiskFailed):
            return
        yield from (directory / file.path for file in record.files if file.digest == digest)

    def _models(self, done: Recovery) -> None:
        on_disk = {each.name for each in listed(self.paths.models)}
        known = {key.hex for key in self.ledger.model_keys()}
        for name in sorted(on_disk - known):
            self._found_model(self.paths.models / name, done)
        for name in sorted(known - on_disk):
            self.ledger.drop_model(Digest(name))
            done.models_lost += 1

    def _found_model(self, path: Path, done: Recovery) -> None:
        key = parse_hex(path.name)
        try:
            record = read_record(path / RECORD_NAME)
            with reading(self.paths.origin(record.key)):
                origin = ImageOrigin.parse(self.paths.origin(record.key).read_bytes())
            usable = record.key == key and self._is_whole(path, record)
        except (InvalidImage, DiskFailed) as error:
            done.notes.append(f"model {path.name}: {error}")
            usable = False
        if not usable:
            # Quarantined, not removed: its bytes may be all that is left of a model.
            self.disk.rename(path, self.paths.quarantine / path.name)
            done.models_broken += 1
            return
        self.ledger.put_model(self.publisher.model_row(record, origin.image), record)
        self.ledger.put_image(origin, record.key, self.clock())
        self.ledger.add_authorizations(origin.repository, record.files)
        done.models_found += 1

    def _is_whole(self, directory: Path, record: AnyRecord) -> bool:
        """Whether every file of a model is there and is a hard link to the store's inode."""
        return all(
            same_file(directory / file.path, self.paths.file(file.digest)) for file in record.files
        )

    def _leases(self, done: Recovery) -> None:
        models = set(self.ledger.model_keys())
        for lease in self.ledger.leases():
            if lease.model not in models:
                self.ledger.drop_lease(lease.id)
                done.leases_dropped += 1

    def _orphans(self, journals: list[JournalRefs], done: Recovery) -> None:
        # An interrupted pull continues with the files that its journal names.
        wanted = {digest for journal in journals for digest in journal.files}
        for file in self.ledger.unreferenced_files():
            if file.digest not in wanted:
                self.ledger.drop_file(file.digest)
                self.disk.unlink(self.paths.file(file.digest))
                done.leftovers += 1
        known = {key.hex for key in self.ledger.model_keys()}
        for path in (*listed(self.paths.records), *listed(self.paths.origins)):
            if path.stem not in known:
                self.disk.remove_tree(path)
                done.leftovers += 1


def listed(directory: Path) -> list[Path]:
    """The entries of a directory, sorted; empty when it doesn't exist. Raises DiskFailed."""
    try:
        return sorted(directory.iterdir(), key=lambda path: path.name)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DiskFailed(f"can't list {directory}: {error.strerror}") from error


def parse_hex(name: str) -> Digest | None:
    """The digest that a file name spells, or None."""
    try:
        return Digest(name)
    except InvalidInput:
        return None


def same_file(one: Path, other: Path) -> bool:
    """Whether two names are one inode; False when either is missing."""
    try:
        # lstat: a symbolic link to the file is no hard link.
        return one.lstat().st_ino == other.lstat().st_ino
    except OSError:
        return False
