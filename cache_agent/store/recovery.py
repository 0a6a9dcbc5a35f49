"""Recovery when a store is opened: completes or reverts every step that a crash interrupted.

The names on the disk are the truth; the ledger is adjusted to them. Half-built directories, trash and partials without
a journal are removed. Never removes a complete model, never trusts a byte that wasn't verified before it was named.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cache_agent.store.disk import Disk, is_real_directory, listed, plain_size, scan
from cache_agent.store.journal import JournalRefs, read_claims
from cache_agent.store.ledger import Ledger
from cache_agent.store.links import ModelLinks, descriptions, find_record, read_origin
from cache_agent.store.paths import FILE_PREFIXES, StorePaths, parse_hex, used_prefixes
from cache_agent.store.publisher import Publisher
from cache_agent.store.values import ImageOrigin, StoredFile
from modelimage.digest import Digest
from modelimage.errors import InvalidImage, NotWritable

# Imported where a record is read: most commands read none, and foreign images have many modules.
if TYPE_CHECKING:
    from modelimage.foreign import AnyRecord


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
    links: ModelLinks
    publisher: Publisher
    clock: Callable[[], float]

    def run(self) -> Recovery:
        """Recover a store that no pull uses. Raises DiskFailed, NoSpace, NotWritable."""
        done = Recovery()
        self._remove_leftovers(done)
        journals = self._journals(done)
        # In this order: a model is judged by the files found, an orphan by the models found.
        self._files(done)
        self._models(journals, done)
        with self.ledger.transaction():
            if self.ledger.lost:
                self._refill()
            self._leases(done)
        self._orphans(journals, done)
        return done

    def _remove_leftovers(self, done: Recovery) -> None:
        hidden = [each for each in listed(self.paths.models) if each.name.startswith(".")]
        temporary = [
            each
            for directory in (
                self.paths.root,
                self.paths.records,
                self.paths.origins,
                self.paths.pins,
                self.paths.documents,
                self.paths.repositories,
                self.paths.partial,
            )
            for each in listed(directory)
            if each.name.startswith(".") and each.name.endswith(".tmp")
        ]
        for path in (*listed(self.paths.trash), *hidden, *temporary):
            self.disk.remove_tree(path)
            done.leftovers += 1

    def _journals(self, done: Recovery) -> list[JournalRefs]:
        """Read the journals of interrupted pulls; remove the partials that none of them references."""
        plain, others = scan(self.paths.partial)
        # A pull would write through a link, and can't use anything else either.
        for path in others:
            self.disk.remove_tree(path)
            done.leftovers += 1
        journals = []
        for path in plain:
            if path.suffix == ".json":
                try:
                    journals.append(read_claims(path))
                except (InvalidImage, NotWritable) as error:
                    # Without its journal a pull starts over; its partials are removed below.
                    done.notes.append(f"dropped an unreadable journal: {error}")
                    self.disk.unlink(path)
        claimed = {name for journal in journals for name in journal.partials}
        for path in plain:
            if path.suffix != ".json" and path.stem not in claimed:
                self.disk.unlink(path)
                done.leftovers += 1
        return journals

    def _files(self, done: Recovery) -> None:
        directories = listed(self.paths.files)
        for path in directories:
            if path.name not in FILE_PREFIXES or not is_real_directory(path):
                self._no_file(path, done)
        for prefix in used_prefixes(directories, self.ledger.file_prefixes()):
            plain, others = scan(self.paths.files / prefix)
            # Also a link in the place of a known file, which is then linked again from a model.
            for path in others:
                self._no_file(path, done)
            on_disk = {each.name: each for each in plain}
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

    def _no_file(self, path: Path, done: Recovery) -> None:
        self.links.set_aside(path)
        done.notes.append(f"moved {path.name} to quarantine: not a file of this store")

    def _found_file(self, path: Path, done: Recovery) -> None:
        digest, size = parse_hex(path.name), plain_size(path)
        if digest is None or size is None or digest.hex[:2] != path.parent.name:
            self._no_file(path, done)
            return
        # Its bytes weren't verified since this ledger exists: first in line for the scrubber.
        self.ledger.put_file(StoredFile(digest, size, (), 0.0))
        done.files_found += 1

    def _relink(self, digest: Digest) -> bool:
        """Restore a file's name from a model directory that still links its inode."""
        for key in self.ledger.models_of(digest):
            record, directory = find_record(self.paths, key), self.paths.model(key)
            for file in record.files if record else ():
                held = directory / file.path
                if file.digest == digest and plain_size(held) == file.size:
                    # A link, not a copy: it is the inode that was verified.
                    self.disk.mkdir(self.paths.file(digest).parent)
                    self.disk.link(held, self.paths.file(digest))
                    self.disk.sync_directory(self.paths.file(digest).parent)
                    return True
        return False

    def _models(self, journals: list[JournalRefs], done: Recovery) -> None:
        on_disk = {each.name for each in listed(self.paths.models)}
        known = {key.hex for key in self.ledger.model_keys()}
        for name in sorted(on_disk - known):
            self._found_model(self.paths.models / name, journals, done)
        for name in sorted(known):
            key = Digest(name)
            if not is_real_directory(self.paths.model(key)) and not self._rebuilt(key):
                with self.ledger.transaction():
                    self.ledger.drop_model(key)
                done.models_lost += 1

    def _rebuilt(self, key: Digest) -> bool:
        """Whether the directory of a known model, missing or replaced, could be linked again from the store's files."""
        record = find_record(self.paths, key)
        if record is None or not self.links.has_files(record):
            return False
        # What is in the way may be a user's: set aside, never removed.
        self.links.set_aside(self.paths.model(key))
        self.links.lay(record, self.paths.staging(key))
        self.disk.rename(self.paths.staging(key), self.paths.model(key))
        self.disk.sync_directory(self.paths.models)
        return True

    def _found_model(self, path: Path, journals: list[JournalRefs], done: Recovery) -> None:
        key = parse_hex(path.name)
        record = find_record(self.paths, key) if key else None
        origin = self._origin(record.key, done) if record else None
        if record is None or origin is None or not self._is_mended(record, path):
            done.notes.append(f"model {path.name} moved to quarantine: it isn't whole")
            if record is not None:
                # The next pull goes on with the files that it still has.
                self.disk.write_small(self.paths.journal(record.key), record.to_bytes())
                journals.append(JournalRefs.of(record))
            # Quarantined, not removed: its bytes may be all that is left of a model.
            self.links.set_aside(path)
            done.models_broken += 1
            return
        with self.ledger.transaction():
            self.ledger.put_model(self.publisher.model_row(record, origin.image), record)
            self.ledger.put_image(origin, record.key, self.clock())
            self.ledger.add_authorizations(origin.repository, record.files)
        done.models_found += 1

    def _refill(self) -> None:
        """Restore what a ledger that was lost in part should hold of models that it still knows."""
        for key in self.ledger.model_keys():
            record, model = find_record(self.paths, key), self.ledger.model(key)
            if record is None or model is None:
                continue
            self.ledger.put_model(model, record)
            with suppress(InvalidImage, NotWritable):
                origin = read_origin(self.paths.origin(key))
                self.ledger.put_image(origin, key, self.clock())
                self.ledger.add_authorizations(origin.repository, record.files)

    def _origin(self, key: Digest, done: Recovery) -> ImageOrigin | None:
        try:
            return read_origin(self.paths.origin(key))
        except (InvalidImage, NotWritable) as error:
            done.notes.append(f"model {key.short}: {error}")
            return None

    def _is_mended(self, record: AnyRecord, path: Path) -> bool:
        """Whether a model's directory is whole, after linking again what can be."""
        if not self.links.has_files(record):
            return False
        self.links.mend(record, path)
        return True

    def _leases(self, done: Recovery) -> None:
        models = set(self.ledger.model_keys())
        for lease in self.ledger.leases():
            if lease.model not in models:
                self.ledger.drop_lease(lease.id)
                done.leases_dropped += 1

    def _orphans(self, journals: list[JournalRefs], done: Recovery) -> None:
        # An interrupted pull continues with the files that its journal names.
        wanted = {digest for journal in journals for digest in journal.files}
        orphans = [f.digest for f in self.ledger.unreferenced_files() if f.digest not in wanted]
        if orphans:
            # One transaction for all: there may be thousands after an interrupted pull of small files.
            with self.ledger.transaction():
                for digest in orphans:
                    self.ledger.drop_file(digest)
                    self.disk.unlink(self.paths.file(digest))
        known = {key.hex for key in self.ledger.model_keys()}
        described = [path for path in descriptions(self.paths) if path.stem not in known]
        for path in described:
            self.disk.remove_tree(path)
        done.leftovers += len(orphans) + len(described)
