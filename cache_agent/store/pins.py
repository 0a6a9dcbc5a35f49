"""Pins, stored twice: in the ledger, which decides, and as empty files `images/pins/<key>`, which survive its loss."""

from __future__ import annotations

from dataclasses import dataclass

from cache_agent.store.disk import Disk
from cache_agent.store.ledger import Ledger
from cache_agent.store.paths import StorePaths
from cache_agent.store.recovery import listed, parse_hex
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

    def settle(self, *, ledger_was_lost: bool) -> int:
        """Reconcile files and ledger; the number of differences. The ledger
        decides, unless it was lost: then the files do."""
        noted = {digest for path in listed(self.paths.pins) if (digest := parse_hex(path.name))}
        if ledger_was_lost:
            with self.ledger.transaction():
                for key in noted:
                    self.ledger.set_pin(key, pinned=True)
        pinned = {model.key for model in self.ledger.models() if model.pinned}
        for key in noted - pinned:
            self.disk.unlink(self.paths.pin(key))
        for key in pinned - noted:
            self.disk.write_durable(self.paths.pin(key), b"")
        return len(noted ^ pinned)
