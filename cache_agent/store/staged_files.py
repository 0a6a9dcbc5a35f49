"""Where the files of a foreign image wait: nothing is known of them until the layer that they came in is verified.

A spool is a partial that goes by its layer and its number in it. What a pull has of an image is noted in its journal.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cache_agent.errors import DiskFailed
from cache_agent.store.disk import Disk, is_plain_file
from cache_agent.store.journal import ForeignPullState, read_journal, staged_name
from cache_agent.store.partials import Partial
from cache_agent.store.paths import StorePaths
from modelimage.digest import Digest
from modelimage.errors import InvalidImage
from modelimage.record import RecordFile, Role


@dataclass(frozen=True, slots=True)
class StagedLayerFiles:
    """The spools of one store. `boot` names this boot of the machine."""

    paths: StorePaths
    disk: Disk
    boot: str

    def open(self, layer: Digest, member: int, size: int) -> Partial:
        """A spool of `size` bytes, new or continued. Raises NoSpace, NotWritable, DiskFailed."""
        file = unknown_file(layer, member, size)
        return Partial(file, self.paths, self.disk, self.boot, file.digest)

    def reopen(self, layer: Digest, member: int, file: RecordFile) -> Partial:
        """A finished spool as the file that it turned out to be. Raises DiskFailed when it is gone."""
        path = self.path(layer, member)
        if file.size and self.size(layer, member) != file.size:
            raise DiskFailed(f"{path} was changed while a pull counted on it", hint="Pull again.")
        staged_file = self.open(layer, member, file.size)
        staged_file.vouch(file)
        return staged_file

    def path(self, layer: Digest, member: int) -> Path:
        """Where a spool's bytes are; it need not exist."""
        return self.paths.partial_data(staged_name(layer, member))

    def size(self, layer: Digest, member: int) -> int | None:
        """What a spool takes on disk; None when there is none."""
        path = self.path(layer, member)
        return path.stat().st_size if is_plain_file(path) else None

    def drop(self, layer: Digest, member: int) -> None:
        """Remove a spool, if it is there."""
        self.disk.unlink(self.path(layer, member))
        self.disk.unlink(self.paths.partial_bitmap(staged_name(layer, member)))

    def note(self, pull_state: ForeignPullState) -> None:
        """Write down what a pull has so far."""
        self.disk.write_small(self.paths.journal(pull_state.key), pull_state.to_bytes())

    def recall(self, key: Digest) -> ForeignPullState:
        """What an earlier pull of a model had when it ended early."""
        path = self.paths.journal(key)
        if is_plain_file(path):
            with suppress(InvalidImage):
                journal = read_journal(path)
                if isinstance(journal, ForeignPullState) and journal.key == key:
                    return journal
        return ForeignPullState(key)

    def forget(self, pull_state: ForeignPullState) -> None:
        """Remove the journal's spools, then the journal."""
        for name in sorted(pull_state.staged_files()):
            for suffix in (".data", ".bitmap"):
                self.disk.unlink(self.paths.partial / f"{name}{suffix}")
        self.disk.unlink(self.paths.journal(pull_state.key))


def unknown_file(layer: Digest, member: int, size: int) -> RecordFile:
    """A member of which only its place is known: it goes by the digest of that, and has no chunk digests."""
    name = staged_name(layer, member)
    return RecordFile(f"{layer.short}/{member}", size, name, Role.WEIGHT, layer, ())
