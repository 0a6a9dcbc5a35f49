"""One store, open: the composition of its rooms, and what the rest of the agent may ask of it.

Holds the store's lock from `open` to `close`. Safe for use from several threads. Knows no network.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from cache_agent.observability.events import Events
from cache_agent.store.budget import Reservation, Reservations, StoreSpace
from cache_agent.store.disk import Disk, Observer, ignore, is_plain_file, reading
from cache_agent.store.group_commit import GroupCommit
from cache_agent.store.lease_reaper import LeaseReaper
from cache_agent.store.ledger import Ledger
from cache_agent.store.lock import StoreLock
from cache_agent.store.partials import Partial, boot_id, identity
from cache_agent.store.paths import StorePaths
from cache_agent.store.pins import Pins
from cache_agent.store.policy import Candidate, Eviction
from cache_agent.store.publish import Publisher, read_record
from cache_agent.store.queries import LedgerDamaged
from cache_agent.store.recovery import Recoverer, Recovery, listed
from cache_agent.store.removal import Holds, Remover
from cache_agent.store.repairer import Repairer
from cache_agent.store.scrub import Scrubber
from cache_agent.store.space import SpaceLimits, SpaceView
from cache_agent.store.staged_files import StagedLayerFiles
from cache_agent.store.values import Holder, Lease, Model, Origin, StoredFile, Use
from modelimage.digest import Digest
from modelimage.errors import InUse, NotFound, NotWritable
from modelimage.foreign import AnyRecord
from modelimage.record import RecordFile

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """How to open a store. `observe` sees every change of the disk; `boot` names this boot of the machine.

    `is_gone` tells that a lease's holder certainly isn't there any more; `users` tells who uses the models of a
    directory now, from which leases are restored when the ledger was lost.
    """

    limits: SpaceLimits
    clock: Clock
    observe: Observer = ignore
    boot: str | None = None
    events: Events = field(default_factory=Events)
    is_gone: Callable[[Holder], bool] = lambda holder: False
    users: Callable[[Path], Iterable[Use]] = lambda models: ()


class Store:
    """An open store. Opening raises Busy, NotWritable, NoSpace, DiskFailed."""

    def __init__(self, root: Path, options: StoreOptions) -> None:
        self.paths = StorePaths(root.absolute())
        self.disk = Disk(options.observe)
        self._clock, self._options = options.clock, options
        self._boot = options.boot or boot_id()
        make_root(self.paths.root)
        self._lock = StoreLock(self.paths.lock)
        try:
            for directory in self.paths.directories()[1:]:
                self.disk.mkdir(directory)
            self.ledger, self.ledger_was_lost = open_ledger(self.paths, self.disk)
            self.publisher = Publisher(self.paths, self.disk, self.ledger, options.clock)
            self._recoverer = Recoverer(
                self.paths, self.disk, self.ledger, self.publisher, options.clock
            )
            self.recovered = self._recover()
        except BaseException:
            self._lock.close()
            raise
        self.holds = Holds()
        self.staged_files = StagedLayerFiles(self.paths, self.disk, self._boot)
        self.repairer = Repairer(self.paths, self.disk, self.ledger)
        self.reconciler = LeaseReaper(self.ledger, options.events, options.is_gone, options.clock)
        self._commits = GroupCommit(self.ledger)
        self.pins = Pins(self.paths, self.disk, self.ledger)
        self.pins.settle(ledger_was_lost=self.ledger_was_lost)
        if self.ledger_was_lost:
            self.reconciler.restore(options.users(self.paths.models))
        self._remover = Remover(self.paths, self.disk, self.ledger, self.holds)
        self._space = StoreSpace(
            self.paths, self.ledger, options.limits, Reservations(), options.events
        )

    def _recover(self) -> Recovery:
        """Settle the store; a ledger that turns out damaged on the way is made anew from the files."""
        try:
            return self._recoverer.run()
        except LedgerDamaged:
            self.ledger.close()
            set_ledger_aside(self.paths, self.disk)
            self.ledger, self.ledger_was_lost = Ledger(self.paths), True
            self.publisher = replace(self.publisher, ledger=self.ledger)
            self._recoverer = replace(self._recoverer, ledger=self.ledger, publisher=self.publisher)
            return self._recoverer.run()

    def close(self) -> None:
        """Give the lock back. Running pulls must have ended."""
        self.ledger.close()
        self._lock.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- models ------------------------------------------------------------------------------

    def models(self) -> list[Model]:
        return self.ledger.models()

    def model(self, key: Digest) -> Model | None:
        return self.ledger.model(key)

    def images_of(self, key: Digest) -> list[str]:
        return self.ledger.images_of(key)

    def resolved(self, image: str, variant: str | None) -> tuple[Model, float] | None:
        """The cached model that an image last meant, and when that was asked; for when its registry is away."""
        found = self.ledger.meaning(image, variant)
        model = self.ledger.model(found.key) if found else None
        return (model, found.at) if found and model else None

    def publish(self, record: AnyRecord, origin: Origin, fetch_seconds: float) -> Model:
        """Make a model visible and forget its pull's journal."""
        model = self.publisher.publish(record, origin, fetch_seconds)
        self.disk.unlink(self.paths.journal(record.key))
        return model

    def remove(self, key: Digest, *, unpin: bool = False) -> int:
        """Remove a model and what only it held; bytes freed. Raises NotFound, InUse."""
        return self._remover.remove_model(key, unpin=unpin)

    def pin(self, key: Digest, *, pinned: bool) -> None:
        with self.ledger.transaction():
            self._require(key)
            self.pins.set(key, pinned=pinned)

    # -- files -------------------------------------------------------------------------------

    def file(self, digest: Digest) -> StoredFile | None:
        return self.ledger.file(digest)

    def is_untouched(self, file: StoredFile) -> bool:
        """Whether a stored file looks as it did when it was verified: size, time of last write, and read-only.

        Costs no read; whoever writes to a cached file by accident is noticed before the file is used again.
        """
        try:
            status = self.paths.file(file.digest).lstat()
        except OSError:
            return False
        return (
            status.st_size == file.size
            and status.st_mtime_ns == file.mtime_ns
            and not status.st_mode & 0o222
        )

    def reverify(self, file: StoredFile) -> bool:
        """Read a file that was touched: whether it is right all the same, and is protected again."""
        if self.scrubber(0.0, lambda count: None).scrub(file) is not None:
            return False
        self.repairer.protect(self.paths.file(file.digest))
        return True

    def is_proven(self, repository: str, file: RecordFile) -> bool:
        """Whether this file came through this layer of this repository before."""
        return self.ledger.is_proven(repository, file.layer, file.digest)

    def hold(self, digests: Iterable[Digest]) -> AbstractContextManager[None]:
        """While inside, none of these files is removed."""
        return self.holds.hold(digests)

    def begin(self, record: AnyRecord) -> None:
        """Note that a pull of this record is under way, so that what it fetched survives a restart."""
        self.disk.write_small(self.paths.journal(record.key), record.to_bytes())

    def end(self, record: AnyRecord) -> None:
        """Forget the journal: nothing of this record is on its way any more."""
        self.disk.unlink(self.paths.journal(record.key))

    def partial(self, file: RecordFile) -> Partial:
        """The file's partial download, new or continued. Raises NoSpace when the disk can't take the whole of it."""
        return Partial(file, self.paths, self.disk, self._boot)

    def partial_bytes(self, file: RecordFile) -> int:
        """What an earlier partial download of this file takes on disk."""
        path = self.paths.partial_data(identity(file))
        return path.stat().st_size if is_plain_file(path) else 0

    def admit(
        self, partial: Partial, computed: Digest, repository: str | None, *, replace: bool = False
    ) -> None:
        """Let a complete, verified file in that came through its layer of `repository`. Raises DigestMismatch.

        None: it came from elsewhere, and nobody's right to it is proven yet.
        """
        self.publisher.admit(partial, computed, repository, replace=replace)

    # -- damage ------------------------------------------------------------------------------

    def note_lost(self, file: RecordFile, index: int) -> None:
        """A chunk of a download isn't any more what was written: it is fetched again, and people are told."""
        detail = f"chunk {index} of a download changed on this disk; it is fetched again"
        self._options.events.damaged(file.digest.hex, detail)

    def scrubber(self, period: float, pause: Callable[[int], None]) -> Scrubber:
        """A scrubber over this store."""
        return Scrubber(
            self.paths, self.ledger, self._options.events, self._options.clock, period, pause
        )

    def models_of(self, digest: Digest) -> list[Digest]:
        """The models that hold a file."""
        return self.ledger.models_of(digest)

    def origin(self, key: Digest) -> Origin:
        """Where a model came from. Raises DiskFailed, InvalidImage."""
        with reading(self.paths.origin(key)):
            return Origin.parse(self.paths.origin(key).read_bytes())

    def record(self, key: Digest) -> AnyRecord:
        """What a cached model holds. Raises DiskFailed, InvalidImage."""
        return read_record(self.paths.record(key))

    def salvage(self, partial: Partial, pause: Callable[[int], None]) -> int:
        """Copy the right chunks of the damaged stored file into its partial; how many were wrong."""
        return self.repairer.salvage(partial, pause)

    def relink(self, digest: Digest) -> int:
        """Make every model's name for a file the store's own inode again."""
        return self.repairer.relink(digest)

    def set_aside(self, digest: Digest) -> list[Digest]:
        """Take a file that can't be mended out of use, with the models that nobody leases."""
        return self.repairer.set_aside(digest)

    def settle(self) -> Recovery:
        """Bring ledger and disk in line while open; no pull may be running."""
        done = self._recoverer.run()
        self.pins.settle(ledger_was_lost=False)
        return done

    # -- leases ------------------------------------------------------------------------------

    def lease_all(self, uses: Sequence[Use]) -> list[Lease | None]:
        """Promise that models are in use, durably together, before they are mounted. Same id: same lease.

        None where the model isn't here.
        """
        return self._commits.run(lambda: [self._take(use) for use in uses])

    def _take(self, use: Use) -> Lease | None:
        lease = Lease(use.lease or uuid.uuid4().hex, use.model, use.holder, self._clock())
        known = self.ledger.lease(lease.id)
        if known is not None and known.model == use.model:
            return known
        if not self.ledger.note_use(use.model, lease.since):
            return None
        self.ledger.put_lease(lease)
        return lease

    def release_all(self, lease_ids: Sequence[str]) -> list[bool]:
        """End leases, durably together; whether there was one of each."""
        return self._commits.run(lambda: [self.ledger.drop_lease(each) for each in lease_ids])

    def lease_named(self, lease_id: str) -> Lease | None:
        return self.ledger.lease(lease_id)

    def leases(self) -> list[Lease]:
        return self.ledger.leases()

    # -- space -------------------------------------------------------------------------------

    def space(self) -> SpaceView:
        return self._space.view()

    def reserve(self, need: int, *, evicting: bool = True) -> Reservation:
        """Promise `need` bytes, evicting what is worth least if that makes room. Raises NoSpace with the numbers."""
        if need and self.space().shortfall(need):
            self.reconciler.expire()
        return self._space.reserve(need, self._clock(), self.remove if evicting else None)

    def set_limits(self, limits: SpaceLimits) -> None:
        """Another budget and minimum free space from now on; nothing is evicted before space is needed."""
        self._space.limits = limits

    def plan_gc(self, need: int) -> Eviction:
        """What would be evicted to free `need` bytes, and why."""
        return self._space.plan(need, self._clock())

    def gc(self, need: int = 0) -> tuple[int, Eviction]:
        """Remove interrupted downloads and unreferenced files, then evict for `need` bytes: bytes freed, and the plan.

        Nothing that a running pull, a lease or a pin counts on is touched.
        """
        freed = self._drop_stale_partials() + self._remover.remove_orphans(keep=())
        plan = self.plan_gc(max(0, need - freed))
        for victim in plan.victims:
            with suppress(InUse, NotFound):  # leased or removed since the plan was made
                freed += self.remove(victim.key)
        return freed, plan

    def candidates(self) -> list[Candidate]:
        """What the eviction policy knows of every model."""
        return self._space.candidates()

    def file_count(self) -> int:
        return self.ledger.file_count()

    def _drop_stale_partials(self) -> int:
        freed = 0
        if self._space.reservations.active():
            return 0
        for path in listed(self.paths.partial):
            with reading(path):
                freed += path.stat().st_size
            self.disk.unlink(path)
        return freed

    def _require(self, key: Digest) -> Model:
        model = self.ledger.model(key)
        if model is None:
            raise NotFound(f"no model {key} in the store", hint="Pull it first.")
        return model


def make_root(root: Path) -> None:
    """Make the root directory with its parents. Raises NotWritable."""
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
    """The ledger, and whether it had to be made anew though the store holds models."""
    lost = not paths.ledger.exists() and any(listed(paths.models))
    try:
        return Ledger(paths), lost
    except LedgerDamaged:
        set_ledger_aside(paths, disk)
        return Ledger(paths), True


def set_ledger_aside(paths: StorePaths, disk: Disk) -> None:
    """Keep a damaged ledger for whoever wants to look at it."""
    for suffix in ("", "-wal", "-shm"):
        path = paths.ledger.with_name(paths.ledger.name + suffix)
        if path.exists():
            disk.rename(path, paths.quarantine / path.name)
