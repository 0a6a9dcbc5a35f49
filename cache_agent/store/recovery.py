"""What a store does when it is opened: settles whatever a crash left between two steps.

Names on disk decide what is stored; the ledger is brought in line with them. Half-built directories, trash and
partial downloads that no pull's journal claims are removed. Never removes a complete model, never trusts a byte
that wasn't verified before it got its name.
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
from cache_agent.store.publish import Publisher, read_record
from cache_agent.store.values import Origin, StoredFile
from modelimage.digest import Digest
from modelimage.errors import InvalidImage, InvalidInput
from modelimage.foreign import AnyRecord
from modelimage.paths import RECORD_NAME


@dataclass
class Recovery:
    """What recovery did, for logs: counts by kind."""

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
    """Brings ledger and disk of one store in line."""

    paths: StorePaths
    disk: Disk
    ledger: Ledger
    publisher: Publisher
    clock: Callable[[], float]

    def run(self) -> Recovery:
        """Settle everything; the store is not in use yet. Raises DiskFailed, NoSpace, NotWritable."""
        done = Recovery()
        self._remove_leftovers(done)
        journals = self._journals(done)
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
        """What pulls that were under way claim; partials that none of them claims are removed."""
        journals = []
        for path in listed(self.paths.partial):
            if path.suffix == ".json":
                try:
                    journals.append(read_claims(path))
                except (InvalidImage, DiskFailed) as error:
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
                continue
            with self.ledger.transaction():
                for name in on_disk.keys() - known.keys():
                    self._found_file(on_disk[name], done)
                for name in known.keys() - on_disk.keys():
                    if not self._relink(Digest(name)):
                        self.ledger.drop_file(Digest(name))
                        done.files_lost += 1

    def _found_file(self, path: Path, done: Recovery) -> None:
        digest = parse_hex(path.name)
        if digest is None or not is_plain_file(path):
            self.disk.rename(path, self.paths.quarantine / path.name)
            done.notes.append(f"moved {path.name} to quarantine: not a file of this store")
            return
        # Not verified since the ledger knows of it: first in line for the scrubber.
        self.ledger.put_file(StoredFile(digest, path.stat().st_size, (), 0.0))
        done.files_found += 1

    def _relink(self, digest: Digest) -> bool:
        """Get a file's name back from a model that still holds its inode."""
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
                origin = Origin.parse(self.paths.origin(record.key).read_bytes())
            usable = record.key == key and self._is_whole(path, record)
        except (InvalidImage, DiskFailed) as error:
            done.notes.append(f"model {path.name}: {error}")
            usable = False
        if not usable:
            self.disk.rename(path, self.paths.quarantine / path.name)
            done.models_broken += 1
            return
        self.ledger.put_model(self.publisher.model_row(record, origin.image), record)
        self.ledger.put_image(origin, record.key, self.clock())
        self.ledger.add_proofs(origin.repository, record.files)
        done.models_found += 1

    def _is_whole(self, directory: Path, record: AnyRecord) -> bool:
        """Whether every file of a model is there and is the store's own inode."""
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
    """What is in a directory, sorted; nothing when it isn't there."""
    try:
        return sorted(directory.iterdir(), key=lambda path: path.name)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DiskFailed(f"can't list {directory}: {error.strerror}") from error


def parse_hex(name: str) -> Digest | None:
    """The digest that a file name is, if it is one."""
    try:
        return Digest(name)
    except InvalidInput:
        return None


def same_file(one: Path, other: Path) -> bool:
    """Whether two names are one inode; False when either is missing."""
    try:
        return one.lstat().st_ino == other.lstat().st_ino
    except OSError:
        return False
