"""Pins, stored twice: in the ledger, which decides, and as empty files `images/pins/<key>`, which survive its loss."""

from __future__ import annotations

from dataclasses import dataclass

from cache_agent.store.disk import Disk, is_plain_file, scan
from cache_agent.store.ledger import Ledger
from cache_agent.store.paths import StorePaths, parse_hex
from modelimage.digest import Digest


@dataclass(frozen=True, slots=True)
class Pins:
    """The pins of one store. Raises NoSpace, NotWritable, DiskFailed."""

    paths: StorePaths
    disk: Disk
    ledger: Ledger

    def set(self, key: Digest, *, pinned: bool) -> None:
        """Pin or unpin a stored model."""
        # File first when pinning, last when unpinning: a crash between the steps must never lose a pin with the ledger.
        if pinned:
            self.disk.write_durable(self.paths.pin(key), b"")
        self.ledger.set_pin(key, pinned)
        if not pinned:
            self.disk.unlink(self.paths.pin(key))
            # Else a power loss brings the mark back, and the pin with it.
            self.disk.sync_directory(self.paths.pins)

    def settle(self, *, ledger_was_lost: bool) -> None:
        """Reconcile marks and ledger. A mark pins its model; where the ledger was lost, only marks do.

        A mark without its model waits for the next pull of it, which pins it again: where the ledger was lost, or a
        journal says that the model was set aside. Any other is a leftover.
        """
        plain, others = scan(self.paths.pins)
        marked = {key for path in plain if (key := parse_hex(path.name))}
        for path in (*others, *(path for path in plain if parse_hex(path.name) is None)):
            self.disk.remove_tree(path)
        stored = {model.key: model.pinned for model in self.ledger.models()}
        pinned = {key for key, is_pinned in stored.items() if is_pinned}
        with self.ledger.transaction():
            for key in (marked & stored.keys()) - pinned:
                self.ledger.set_pin(key, pinned=True)
            for key in pinned - marked if ledger_was_lost else ():
                self.ledger.set_pin(key, pinned=False)
        # After the transaction, since files can't be rolled back; a crash in between repeats this.
        for key in marked - stored.keys():
            if not ledger_was_lost and not is_plain_file(self.paths.journal(key)):
                self.disk.unlink(self.paths.pin(key))
        for key in () if ledger_was_lost else pinned - marked:
            self.disk.write_durable(self.paths.pin(key), b"")
