"""A model's directory: real directories that hold hard links to the store's files and to the record, nothing else.

One place lays, proves and mends it, for publishing, recovery, repair and the checker. A directory that is in use is
mended name by name, never replaced: servers have it mounted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from cache_agent.errors import Vanished
from cache_agent.store.disk import (
    Disk,
    is_plain_file,
    is_real_directory,
    listed,
    plain_size,
    read_plain,
    reading,
    same_file,
    status_of,
)
from cache_agent.store.ledger import Ledger
from cache_agent.store.paths import StorePaths
from cache_agent.store.values import ImageOrigin
from modelimage.digest import Digest
from modelimage.errors import InvalidImage, NotWritable
from modelimage.path_rules import RECORD_NAME, parents
from modelimage.record import RecordFile

# Imported where a record is read: most commands read none, and foreign images have many modules.
if TYPE_CHECKING:
    from modelimage.foreign import AnyRecord


def read_record(path: Path) -> AnyRecord:
    """Read a record: of our own image, or derived on this node from a foreign one. Raises InvalidImage, DiskFailed."""
    with reading(path):
        data = read_plain(path)
    from modelimage.foreign import parse_record  # noqa: PLC0415

    return parse_record(data)


def read_origin(path: Path) -> ImageOrigin:
    """Read a publish record. Raises InvalidImage, DiskFailed."""
    with reading(path):
        return ImageOrigin.parse(read_plain(path))


def descriptions(paths: StorePaths) -> list[Path]:
    """The records and publish records of all models, by the hex digits of their keys; perhaps of some that are gone."""
    return [*listed(paths.records), *listed(paths.origins)]


def find_record(paths: StorePaths, key: Digest) -> AnyRecord | None:
    """A model's record from its directory or, when it is missing or wrong there, from the store's own copy."""
    # Two copies, because a damaged record must not cost hundreds of gigabytes of sound files.
    for path in (paths.model(key) / RECORD_NAME, paths.record(key)):
        with suppress(InvalidImage, NotWritable):
            if is_plain_file(path) and (record := read_record(path)).key == key:
                return record
    return None


def below(directory: Path) -> Iterator[Path]:
    """All non-directories below a directory; links are not followed."""
    for path in listed(directory):
        if is_real_directory(path):
            yield from below(path)
        else:
            yield path


@dataclass(frozen=True, slots=True)
class ModelLinks:
    """Lays, proves and mends the directories of one store's models. Raises DiskFailed, NoSpace, NotWritable."""

    paths: StorePaths
    disk: Disk
    ledger: Ledger

    def lay(self, record: AnyRecord, directory: Path) -> None:
        """Build a directory that isn't there yet, and make it durable bottom-up. Raises Vanished for a missing file."""
        self.keep_record(record)
        directories = _directories(record, directory)
        for each in directories:
            self.disk.make_staging(each)
        for file in record.files:
            self.disk.link(self.paths.file(file.digest), directory / file.path)
        self.disk.link(self.paths.record(record.key), directory / RECORD_NAME)
        # Children before parents: a name that is durable before what is below it would promise a whole model.
        for each in reversed(directories):
            self.disk.sync_directory(each)

    def keep_record(self, record: AnyRecord) -> None:
        """Write the store's copy of a record, unless it is there and right."""
        path, data = self.paths.record(record.key), record.to_bytes()
        self.clear(path)
        with reading(path):
            same = is_plain_file(path) and read_plain(path) == data
        if not same:
            self.disk.write_durable(path, data)

    def faults(self, record: AnyRecord, directory: Path) -> list[Path]:
        """The names of a directory that aren't what the record says, missing ones included."""
        wrong = [each for each in _directories(record, directory) if not is_real_directory(each)]
        for file in record.files:
            path, stored = directory / file.path, self.paths.file(file.digest)
            # Same inode, not same bytes: a copy would be neither scrubbed nor repaired with the store's file.
            if not is_plain_file(stored) or not same_file(path, stored):
                wrong.append(path)
        if not same_file(directory / RECORD_NAME, self.paths.record(record.key)):
            wrong.append(directory / RECORD_NAME)
        return wrong

    def extras(self, record: AnyRecord, directory: Path) -> list[Path]:
        """The files of a directory that the record doesn't name."""
        named = {directory / RECORD_NAME, *(directory / file.path for file in record.files)}
        # A link in place of a directory is a fault of that name, not an extra one.
        named.update(_directories(record, directory))
        return [path for path in below(directory) if path not in named]

    def is_whole(self, record: AnyRecord, directory: Path) -> bool:
        """Whether every name of the record is there and is the store's own inode."""
        return not self.faults(record, directory)

    def is_right(self, record: AnyRecord, directory: Path) -> bool:
        """Whether a directory is whole and holds nothing else."""
        return self.is_whole(record, directory) and not self.extras(record, directory)

    def has_files(self, record: AnyRecord) -> bool:
        """Whether every file is in `files/`, and there as large as the ledger says."""
        return self._missing(record) is None

    def require_files(self, record: AnyRecord) -> None:
        """Raises Vanished for a file that is missing in `files/`, or isn't as large as the ledger says."""
        missing = self._missing(record)
        if missing is not None:
            path = self.paths.file(missing.digest)
            raise Vanished(f"{path} was removed while it was used", hint="Pull again.")

    def mend(self, record: AnyRecord, directory: Path) -> int:
        """Put right every name of a directory; returns how many were wrong. Raises Vanished for a missing file.

        What is in the place of a name goes to quarantine.
        """
        self.require_files(record)
        self.keep_record(record)
        wrong = self.faults(record, directory)
        for path in self.extras(record, directory):
            self.set_aside(path)
        targets = {directory / file.path: self.paths.file(file.digest) for file in record.files}
        targets[directory / RECORD_NAME] = self.paths.record(record.key)
        for each in _directories(record, directory):
            if not is_real_directory(each):
                self.set_aside(each)
                self.disk.mkdir(each)
        # Again: below a directory that was missing, every name is.
        for path in dict.fromkeys([*wrong, *self.faults(record, directory)]):
            if path in targets:
                self.relink(path, targets[path])
        return len(wrong)

    def relink(self, path: Path, target: Path) -> None:
        """Make one name a hard link to a file of the store."""
        if is_real_directory(path):
            self.set_aside(path)
        # Link, then rename over it: the model's file must exist at every moment.
        fresh = path.with_name(f".{path.name[:100]}.new")
        self.disk.remove_tree(fresh)
        self.disk.link(target, fresh)
        self.disk.rename(fresh, path)
        # Renaming one hard link over another of the same inode does nothing.
        self.disk.unlink(fresh)
        self.disk.sync_directory(path.parent)

    def set_aside(self, path: Path) -> None:
        """Move a name to quarantine, whatever it is; a missing one isn't an error."""
        set_aside(path, self.paths, self.disk)

    def clear(self, path: Path) -> None:
        """Set aside what isn't a plain file in the place of one."""
        if not is_plain_file(path):
            self.set_aside(path)

    def _missing(self, record: AnyRecord) -> RecordFile | None:
        """The first file that isn't there as it should be."""
        sizes = self.ledger.sizes_of([file.digest for file in record.files])
        for file in record.files:
            size = plain_size(self.paths.file(file.digest))
            if size is None or not size == sizes.get(file.digest) == file.size:
                return file
        return None


def set_aside(path: Path, paths: StorePaths, disk: Disk) -> None:
    """Move a name to quarantine, whatever it is; a missing one isn't an error."""
    if status_of(path) is None:
        return
    # Numbered: an earlier quarantined copy must not be overwritten.
    taken = (paths.quarantine / f"{path.name}.{number}" for number in count())
    disk.rename(path, next(each for each in taken if status_of(each) is None))


def _directories(record: AnyRecord, directory: Path) -> list[Path]:
    """The directories of a model, parents first."""
    within = {parent for file in record.files for parent in parents(file.path)}
    return [directory, *(directory / each for each in sorted(within))]
