"""One open store: opens, recovers and composes its parts, which own the operations.

Holds the store's lock from `open` to `close`. Thread-safe. No network access.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from cache_agent.observability.events import Events
from cache_agent.store.budget import StoreSpace
from cache_agent.store.disk import Disk, Observer, ignore
from cache_agent.store.files import StoreFiles
from cache_agent.store.leases import StoreLeases
from cache_agent.store.ledger import Ledger
from cache_agent.store.lock import StoreLock
from cache_agent.store.models import StoreModels
from cache_agent.store.partials import StorePartials, boot_id
from cache_agent.store.paths import StorePaths
from cache_agent.store.pins import Pins
from cache_agent.store.publisher import Publisher
from cache_agent.store.queries import LedgerDamaged
from cache_agent.store.recovery import Recoverer, Recovery, listed
from cache_agent.store.removal import Holds, Remover
from cache_agent.store.repairer import StoreRepairer
from cache_agent.store.space import SpaceLimits
from cache_agent.store.staged_files import StagedLayerFiles
from cache_agent.store.values import Holder, Use
from modelimage.errors import NotWritable

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """How to open a store. `observe` is called before every change of the disk; `boot` is the id of this boot.

    `is_gone` returns True when a lease's holder is certainly gone. `users` lists the current users of the models in a
    directory: their leases are restored after a ledger was lost.
    """

    limits: SpaceLimits
    clock: Clock
    observe: Observer = ignore
    boot: str | None = None
    events: Events = field(default_factory=Events)
    is_gone: Callable[[Holder], bool] = lambda holder: False
    users: Callable[[Path], Iterable[Use]] = lambda models: ()


class Store:
    """An open store. Its parts `models`, `files`, `partials`, `leases` and `space` own its operations.

    Opening raises Busy, NotWritable, NoSpace, DiskFailed.
    """

    def __init__(self, root: Path, options: StoreOptions) -> None:
        self.paths = StorePaths(root.absolute())
        self.disk = Disk(options.observe)
        self._clock = options.clock
        make_root(self.paths.root)
        # Else a failed start would keep lock and ledger open until the process ends.
        with ExitStack() as opened:
            # Before recovery, which assumes that no other process uses the store.
            self._lock = StoreLock(self.paths.lock)
            opened.callback(self._lock.close)
            for directory in self.paths.directories()[1:]:
                self.disk.mkdir(directory)
            self.ledger, self.ledger_was_lost = open_ledger(self.paths, self.disk)
            opened.callback(self._close_ledger)
            self.recovered = self._recover()
            self._compose(options)
            self._restore(options)
            opened.pop_all()

    def _compose(self, options: StoreOptions) -> None:
        """Create the parts, on the ledger that recovery has left."""
        paths, disk, ledger = self.paths, self.disk, self.ledger
        boot, clock, events = options.boot or boot_id(), options.clock, options.events
        holds, publisher = Holds(), Publisher(paths, disk, ledger, clock)
        remover = Remover(paths, disk, ledger, holds)
        self.pins = Pins(paths, disk, ledger)
        self.repairer = StoreRepairer(paths, disk, ledger)
        self.models = StoreModels(paths, disk, ledger, publisher, remover, self.pins)
        self.files = StoreFiles(paths, ledger, publisher, holds, self.repairer, events, clock)
        self.partials = StorePartials(paths, disk, boot, events)
        self.staged_files = StagedLayerFiles(paths, disk, boot)
        self.leases = StoreLeases(ledger, events, is_gone=options.is_gone, clock=clock)
        self.space = StoreSpace(
            paths,
            disk,
            ledger,
            remover,
            limits=options.limits,
            events=events,
            clock=clock,
            expire=self.leases.expire,
        )

    def _restore(self, options: StoreOptions) -> None:
        """Restore what a lost ledger held and the machine still shows: pins and leases."""
        self.pins.settle(ledger_was_lost=self.ledger_was_lost)
        if self.ledger_was_lost:
            # Before the first eviction can run: the models of running servers must have their leases back.
            self.leases.restore(options.users(self.paths.models))

    def _recover(self) -> Recovery:
        """Recover the store; a ledger that turns out damaged on the way is rebuilt from the files."""
        try:
            return self._recoverer().run()
        except LedgerDamaged:
            self.ledger.close()
            set_ledger_aside(self.paths, self.disk)
            self.ledger, self.ledger_was_lost = Ledger(self.paths), True
            return self._recoverer().run()

    def _recoverer(self) -> Recoverer:
        publisher = Publisher(self.paths, self.disk, self.ledger, self._clock)
        return Recoverer(self.paths, self.disk, self.ledger, publisher, self._clock)

    def settle(self) -> Recovery:
        """Reconcile ledger and disk of an open store. No pull may be running."""
        done = self._recoverer().run()
        self.pins.settle(ledger_was_lost=False)
        return done

    def close(self) -> None:
        """Release the lock. Running pulls must have ended."""
        self._close_ledger()
        self._lock.close()

    def _close_ledger(self) -> None:
        # Not bound to one ledger: recovery may replace it.
        self.ledger.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def make_root(root: Path) -> None:
    """Create the root directory with its parents. Raises NotWritable."""
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NotWritable(
            f"can't make the store's directory {root}: {error.strerror}",
            hint="Choose another directory with --root.",
        ) from error
    if not os.access(root, os.W_OK | os.X_OK):
        raise NotWritable(
            f"can't write to the store's directory {root}", hint="Choose another with --root."
        )


def open_ledger(paths: StorePaths, disk: Disk) -> tuple[Ledger, bool]:
    """Open the ledger; also returns whether a new one had to be created although the store holds models."""
    # A missing ledger beside models was lost; an empty store never had one.
    lost = not paths.ledger.exists() and any(listed(paths.models))
    try:
        return Ledger(paths), lost
    except LedgerDamaged:
        set_ledger_aside(paths, disk)
        return Ledger(paths), True


def set_ledger_aside(paths: StorePaths, disk: Disk) -> None:
    """Move a damaged ledger to quarantine, for inspection."""
    # With its WAL, or SQLite would replay that into the new ledger.
    for suffix in ("", "-wal", "-shm"):
        path = paths.ledger.with_name(paths.ledger.name + suffix)
        if path.exists():
            disk.rename(path, paths.quarantine / path.name)
