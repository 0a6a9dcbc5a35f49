"""Staged layer files: files of a foreign image, kept until the layer that contains them is verified.

Each is a partial named after its layer and its member number. The pull's journal records the progress.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cache_agent.errors import DiskFailed
from cache_agent.store.disk import Disk, is_plain_file, plain_size
from cache_agent.store.journal import ForeignPullState, read_journal, staged_name
from cache_agent.store.partials import Partial
from cache_agent.store.paths import StorePaths
from cache_agent.store.reservations import Reservation
from modelimage.digest import Digest
from modelimage.errors import InvalidImage
from modelimage.record import RecordFile, Role


@dataclass(frozen=True, slots=True)
class StagedLayerFiles:
    """The staged layer files of one store. `boot` is the id of this boot of the machine."""

    paths: StorePaths
    disk: Disk
    boot: str

    def open(self, layer: Digest, member: int, size: int, *, room: Reservation | None) -> Partial:
        """Open a staged file of `size` bytes, new or continued, of space that `room` has reserved.

        Raises NoSpace, NotWritable, DiskFailed.
        """
        file = unknown_file(layer, member, size)
        return Partial(file, self.paths, self.disk, self.boot, name=file.digest, room=room)

    def reopen(self, layer: Digest, member: int, file: RecordFile) -> Partial:
        """Open a finished staged file as its final file. Raises DiskFailed when it is gone."""
        path = self.path(layer, member)
        if file.size and self.size(layer, member) != file.size:
            raise DiskFailed(f"{path} was changed while a pull used it", hint="Pull again.")
        # All of it is there.
        staged_file = self.open(layer, member, file.size, room=None)
        staged_file.vouch(file)
        return staged_file

    def path(self, layer: Digest, member: int) -> Path:
        """The path of a staged file, which need not exist."""
        return self.paths.partial_data(staged_name(layer, member))

    def size(self, layer: Digest, member: int) -> int | None:
        """The size of a staged file; None when there is none."""
        return plain_size(self.path(layer, member))

    def drop(self, layer: Digest, member: int) -> None:
        """Remove a staged file, if there is one."""
        self.disk.unlink(self.path(layer, member))
        self.disk.unlink(self.paths.partial_bitmap(staged_name(layer, member)))

    def note(self, pull_state: ForeignPullState) -> None:
        """Write the journal of a pull's progress."""
        self.disk.write_small(self.paths.journal(pull_state.key), pull_state.to_bytes())

    def recall(self, key: Digest) -> ForeignPullState:
        """The progress of an earlier, interrupted pull of a model; empty when there is none."""
        path = self.paths.journal(key)
        if is_plain_file(path):
            # An unreadable journal costs no more than fetching again.
            with suppress(InvalidImage):
                journal = read_journal(path)
                if isinstance(journal, ForeignPullState) and journal.key == key:
                    return journal
        return ForeignPullState(key)

    def forget(self, pull_state: ForeignPullState) -> None:
        """Remove the pull's staged files, then its journal."""
        # The journal goes last: after a crash in between, it still names the remaining files.
        for name in sorted(pull_state.staged_files()):
            for suffix in (".data", ".bitmap"):
                self.disk.unlink(self.paths.partial / f"{name}{suffix}")
        self.disk.unlink(self.paths.journal(pull_state.key))


def unknown_file(layer: Digest, member: int, size: int) -> RecordFile:
    """A layer's member before its content is known: named after layer and number, without chunk digests."""
    name = staged_name(layer, member)
    return RecordFile(f"{layer.short}/{member}", size, name, Role.WEIGHT, layer, ())
