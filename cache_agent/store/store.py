"""One open store: opens, recovers and composes its parts, which own the operations.

Holds the store's lock from `open` to `close`. Thread-safe. No network access.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from cache_agent.observability.events import Events
from cache_agent.store.budget import StoreSpace
from cache_agent.store.disk import (
    Disk,
    Observer,
    ignore,
    is_plain_file,
    is_real_directory,
    listed,
    status_of,
)
from cache_agent.store.files import StoreFiles
from cache_agent.store.leases import StoreLeases
from cache_agent.store.ledger import Ledger
from cache_agent.store.links import ModelLinks, set_aside
from cache_agent.store.lock import StoreLock, WorkGate
from cache_agent.store.models import StoreModels
from cache_agent.store.partials import StorePartials, boot_id
from cache_agent.store.paths import StorePaths
from cache_agent.store.pins import Pins
from cache_agent.store.publisher import Publisher
from cache_agent.store.queries import LedgerDamaged
from cache_agent.store.recovery import Recoverer, Recovery
from cache_agent.store.removal import Holds, Remover
from cache_agent.store.repairer import StoreRepairer
from cache_agent.store.reservations import Reservations
from cache_agent.store.reserve import LedgerReserve
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
        # Reentrant: a repair holds it from choosing a model to linking its names.
        self._names = threading.RLock()
        self.gate = WorkGate()
        make_root(self.paths.root)
        # Else a failed start would keep lock and ledger open until the process ends.
        with ExitStack() as opened:
            # Before recovery, which assumes that no other process uses the store.
            self._lock = StoreLock(self.paths.lock)
            opened.callback(self._lock.close)
            make_directories(self.paths, self.disk)
            self.reserve = LedgerReserve(self.paths.reserve, self.disk)
            with self.reserve.released():
                self._open(opened, options)
            opened.pop_all()

    def _open(self, opened: ExitStack, options: StoreOptions) -> None:
        self.ledger = open_ledger(self.paths, self.disk)
        opened.callback(self._close_ledger)
        self.recovered = self._recover()
        # A whole model that the ledger doesn't know: its tail was lost, or a crash came between name and row.
        self.ledger_was_lost = self.ledger.lost or self.recovered.models_found > 0
        self._compose(options)
        self._restore(options)

    def _compose(self, options: StoreOptions) -> None:
        """Create the parts, on the ledger that recovery has left."""
        paths, disk, ledger = self.paths, self.disk, self.ledger
        boot, clock, events = options.boot or boot_id(), options.clock, options.events
        links, names, holds = ModelLinks(paths, disk, ledger), self._names, Holds()
        publisher = Publisher(paths, disk, ledger, links, names, clock)
        reservations = Reservations()
        remover = Remover(paths, disk, ledger, holds, names, self.reserve, reservations.exclusive())
        self.pins = Pins(paths, disk, ledger)
        self.repairer = StoreRepairer(paths, disk, ledger, links, holds, names)
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
            reservations=reservations,
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
        # Once: what fails with an empty ledger too isn't the old one's damage.
        except LedgerDamaged:
            self.ledger.close()
            self.ledger = new_ledger(self.paths, self.disk)
            return self._recoverer().run()

    def _recoverer(self) -> Recoverer:
        links = ModelLinks(self.paths, self.disk, self.ledger)
        publisher = Publisher(self.paths, self.disk, self.ledger, links, self._names, self._clock)
        return Recoverer(self.paths, self.disk, self.ledger, links, publisher, self._clock)

    def settle(self, drop: Iterable[Path] = ()) -> Recovery:
        """Reconcile ledger and disk of an open store, without some partials. Raises Busy while pulls or repairs run."""
        with self.gate.settling(), self._names:
            make_directories(self.paths, self.disk)
            for path in drop:
                self.disk.remove_tree(path)
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


def is_store(root: Path) -> bool:
    """Whether a directory holds a store, or desired models for the agent that will create one. Raises DiskFailed."""
    paths = StorePaths(root)
    if any(status_of(path) is not None for path in paths.marks()):
        return True
    return any(path.suffix == ".yaml" for path in listed(paths.prewarm))


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


def make_directories(paths: StorePaths, disk: Disk) -> None:
    """Create a store's directories. A link or file in the place of one goes to quarantine: a link is never followed."""
    # First what everything else is moved to.
    _make_quarantine(paths, disk)
    for directory in paths.directories()[1:]:
        if not is_real_directory(directory) and status_of(directory) is not None:
            set_aside(directory, paths, disk)
        disk.mkdir(directory)
    if is_real_directory(paths.socket):
        set_aside(paths.socket, paths, disk)


def _make_quarantine(paths: StorePaths, disk: Disk) -> None:
    place = paths.quarantine
    aside = place.with_name(f".{place.name}")
    if status_of(place) is not None and not is_real_directory(place):
        disk.remove_tree(aside)
        # It can't go to the quarantine before there is one: aside first, and from there into it.
        disk.rename(place, aside)
    disk.mkdir(place)
    # Also what a start that was killed in between has left.
    if status_of(aside) is not None:
        set_aside(aside, paths, disk)


def open_ledger(paths: StorePaths, disk: Disk) -> Ledger:
    """Open the ledger; a damaged one goes to quarantine, and a new one is marked as lost."""
    if any(map(_is_no_file, ledger_files(paths))):
        set_ledger_aside(paths, disk)
    # Its marker proves a loss where it can be read; one that can't proves nothing, as a missing one.
    if _is_no_file(paths.generation):
        set_aside(paths.generation, paths, disk)
    try:
        return Ledger(paths)
    except LedgerDamaged:
        return new_ledger(paths, disk)


def _is_no_file(path: Path) -> bool:
    """Whether something else than a regular file has a name."""
    return status_of(path) is not None and not is_plain_file(path)


def new_ledger(paths: StorePaths, disk: Disk) -> Ledger:
    """Replace a damaged ledger."""
    set_ledger_aside(paths, disk)
    ledger = Ledger(paths)
    ledger.lost = True
    return ledger


def ledger_files(paths: StorePaths) -> list[Path]:
    """The ledger and its log. SQLite would replay an old log into a new ledger."""
    name = paths.ledger.name
    return [paths.ledger.with_name(f"{name}{suffix}") for suffix in ("", "-wal", "-shm")]


def set_ledger_aside(paths: StorePaths, disk: Disk) -> None:
    """Move a damaged ledger to quarantine, for inspection."""
    for path in ledger_files(paths):
        if status_of(path) is not None:
            # Of damaged ledgers the newest is kept: a disk that damages one after another would fill itself with them.
            disk.remove_tree(paths.quarantine / path.name)
            disk.rename(path, paths.quarantine / path.name)
