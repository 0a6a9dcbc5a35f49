"""One open store: composes its parts and offers their operations to the rest of the agent.

Holds the store's lock from `open` to `close`. Thread-safe. No network access.
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
from cache_agent.store.publisher import Publisher, read_record
from cache_agent.store.queries import LedgerDamaged
from cache_agent.store.recovery import Recoverer, Recovery, listed
from cache_agent.store.removal import Holds, Remover
from cache_agent.store.repairer import StoreRepairer
from cache_agent.store.scrub import Scrubber
from cache_agent.store.space import SpaceLimits, SpaceView
from cache_agent.store.staged_files import StagedLayerFiles
from cache_agent.store.values import Holder, ImageOrigin, Lease, StoredFile, StoredModel, Use
from modelimage.digest import Digest
from modelimage.errors import InUse, NotFound, NotWritable
from modelimage.foreign import AnyRecord
from modelimage.record import RecordFile

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
    """An open store. Opening raises Busy, NotWritable, NoSpace, DiskFailed."""

    def __init__(self, root: Path, options: StoreOptions) -> None:
        self.paths = StorePaths(root.absolute())
        self.disk = Disk(options.observe)
        self._clock, self._options = options.clock, options
        self._boot = options.boot or boot_id()
        make_root(self.paths.root)
        # Before recovery, which assumes that no other process uses the store.
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
            # Else a failed start would keep the lock until the process ends.
            self._lock.close()
            raise
        self.holds = Holds()
        self.staged_files = StagedLayerFiles(self.paths, self.disk, self._boot)
        self.repairer = StoreRepairer(self.paths, self.disk, self.ledger)
        self.lease_reaper = LeaseReaper(self.ledger, options.events, options.is_gone, options.clock)
        self._commits = GroupCommit(self.ledger)
        self.pins = Pins(self.paths, self.disk, self.ledger)
        self.pins.settle(ledger_was_lost=self.ledger_was_lost)
        if self.ledger_was_lost:
            # Before the first eviction can run: the models of running servers must have their leases back.
            self.lease_reaper.restore(options.users(self.paths.models))
        self._remover = Remover(self.paths, self.disk, self.ledger, self.holds)
        self._space = StoreSpace(
            self.paths, self.ledger, options.limits, Reservations(), options.events
        )

    def _recover(self) -> Recovery:
        """Recover the store; a ledger that turns out damaged on the way is rebuilt from the files."""
        try:
            return self._recoverer.run()
        except LedgerDamaged:
            self.ledger.close()
            set_ledger_aside(self.paths, self.disk)
            # Everything built on the damaged ledger is replaced with it.
            self.ledger, self.ledger_was_lost = Ledger(self.paths), True
            self.publisher = replace(self.publisher, ledger=self.ledger)
            self._recoverer = replace(self._recoverer, ledger=self.ledger, publisher=self.publisher)
            return self._recoverer.run()

    def close(self) -> None:
        """Release the lock. Running pulls must have ended."""
        self.ledger.close()
        self._lock.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- models ------------------------------------------------------------------------------

    def models(self) -> list[StoredModel]:
        return self.ledger.models()

    def model(self, key: Digest) -> StoredModel | None:
        return self.ledger.model(key)

    def images_of(self, key: Digest) -> list[str]:
        return self.ledger.images_of(key)

    def resolved(self, image: str, variant: str | None) -> tuple[StoredModel, float] | None:
        """The cached model that an image last resolved to, and when: used while its registry is unreachable."""
        found = self.ledger.meaning(image, variant)
        model = self.ledger.model(found.key) if found else None
        return (model, found.at) if found and model else None

    def publish(self, record: AnyRecord, origin: ImageOrigin, fetch_seconds: float) -> StoredModel:
        """Publish a model and remove its pull's journal."""
        model = self.publisher.publish(record, origin, fetch_seconds)
        # After publishing: the journal protects the files until the model's row does.
        self.disk.unlink(self.paths.journal(record.key))
        return model

    def remove(self, key: Digest, *, unpin: bool = False) -> int:
        """Remove a model and the files that only it contains; returns the bytes freed. Raises NotFound, InUse."""
        return self._remover.remove_model(key, unpin=unpin)

    def pin(self, key: Digest, *, pinned: bool) -> None:
        # One transaction: the model can't be removed between the check and the pin.
        with self.ledger.transaction():
            self._require(key)
            self.pins.set(key, pinned=pinned)

    # -- files -------------------------------------------------------------------------------

    def file(self, digest: Digest) -> StoredFile | None:
        return self.ledger.file(digest)

    def is_untouched(self, file: StoredFile) -> bool:
        """Whether a stored file still looks as verified: same size and modification time, and read-only.

        Costs no read, and detects an accidental write to a cached file before the file is used again.
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
        """Read a file that fails `is_untouched`; when it is correct, make it read-only again and return True."""
        if self.scrubber(0.0, lambda count: None).scrub(file) is not None:
            return False
        # The scrub has recorded the new modification time; the mode remains to be restored.
        self.repairer.protect(self.paths.file(file.digest))
        return True

    def is_authorized(self, repository: str, file: RecordFile) -> bool:
        """Whether this file came from this layer of this repository before."""
        return self.ledger.is_authorized(repository, file.layer, file.digest)

    def hold(self, digests: Iterable[Digest]) -> AbstractContextManager[None]:
        """Protect files from removal while inside."""
        return self.holds.hold(digests)

    def begin(self, record: AnyRecord) -> None:
        """Write the journal of a pull, so that its fetched chunks survive a restart."""
        self.disk.write_small(self.paths.journal(record.key), record.to_bytes())

    def end(self, record: AnyRecord) -> None:
        """Remove the journal: no pull of this record is running any more."""
        self.disk.unlink(self.paths.journal(record.key))

    def partial(self, file: RecordFile) -> Partial:
        """Open the file's partial download, new or continued. Raises NoSpace
        when the disk can't hold the whole file."""
        return Partial(file, self.paths, self.disk, self._boot)

    def partial_bytes(self, file: RecordFile) -> int:
        """Size on disk of an earlier partial download of this file."""
        path = self.paths.partial_data(identity(file))
        return path.stat().st_size if is_plain_file(path) else 0

    def admit(
        self, partial: Partial, computed: Digest, repository: str | None, *, replace: bool = False
    ) -> None:
        """Move a complete, verified file into the store, from its layer of `repository`. Raises DigestMismatch.

        `repository` is None for a file from elsewhere: then it proves no access to a repository.
        """
        self.publisher.admit(partial, computed, repository, replace=replace)

    # -- damage ------------------------------------------------------------------------------

    def note_lost(self, file: RecordFile, index: int) -> None:
        """Report a chunk of a download that changed on this disk and is fetched again."""
        detail = f"chunk {index} of a download changed on this disk; it is fetched again"
        self._options.events.damaged(file.digest.hex, detail)

    def scrubber(self, period: float, pause: Callable[[int], None]) -> Scrubber:
        """A scrubber of this store."""
        return Scrubber(
            self.paths, self.ledger, self._options.events, self._options.clock, period, pause
        )

    def models_of(self, digest: Digest) -> list[Digest]:
        """The models that contain a file."""
        return self.ledger.models_of(digest)

    def origin(self, key: Digest) -> ImageOrigin:
        """A model's origin. Raises DiskFailed, InvalidImage."""
        with reading(self.paths.origin(key)):
            return ImageOrigin.parse(self.paths.origin(key).read_bytes())

    def record(self, key: Digest) -> AnyRecord:
        """A cached model's record. Raises DiskFailed, InvalidImage."""
        return read_record(self.paths.record(key))

    def salvage(self, partial: Partial, pause: Callable[[int], None]) -> int:
        """Copy a damaged file's correct chunks into its partial; returns the number of wrong ones."""
        return self.repairer.salvage(partial, pause)

    def relink(self, digest: Digest) -> int:
        """Make every model's name of a file a hard link to the store's inode again."""
        return self.repairer.relink(digest)

    def set_aside(self, digest: Digest) -> list[Digest]:
        """Quarantine a file beyond repair and the models that contain it, unless one of them is leased."""
        return self.repairer.set_aside(digest)

    def settle(self) -> Recovery:
        """Reconcile ledger and disk of an open store. No pull may be running."""
        done = self._recoverer.run()
        self.pins.settle(ledger_was_lost=False)
        return done

    # -- leases ------------------------------------------------------------------------------

    def lease_all(self, uses: Sequence[Use]) -> list[Lease | None]:
        """Lease models in one commit, before they are mounted. Idempotent by id.

        None for a model that isn't stored.
        """
        return self._commits.run(lambda: [self._take(use) for use in uses])

    def _take(self, use: Use) -> Lease | None:
        lease = Lease(use.lease or uuid.uuid4().hex, use.model, use.holder, self._clock())
        # The kubelet repeats its requests: the same id must not count as another use.
        known = self.ledger.lease(lease.id)
        if known is not None and known.model == use.model:
            return known
        # Within one change of the ledger: a model can't be evicted between the check for its row and the lease.
        if not self.ledger.note_use(use.model, lease.since):
            return None
        self.ledger.put_lease(lease)
        return lease

    def release_all(self, lease_ids: Sequence[str]) -> list[bool]:
        """End leases in one commit; returns for each whether it existed."""
        return self._commits.run(lambda: [self.ledger.drop_lease(each) for each in lease_ids])

    def lease_named(self, lease_id: str) -> Lease | None:
        return self.ledger.lease(lease_id)

    def leases(self) -> list[Lease]:
        return self.ledger.leases()

    # -- space -------------------------------------------------------------------------------

    def space(self) -> SpaceView:
        return self._space.view()

    def reserve(self, need: int, *, evicting: bool = True) -> Reservation:
        """Reserve `need` bytes, evicting the least valuable models if that
        suffices. Raises NoSpace with the numbers."""
        # First end the leases of dead holders, else a full store refuses for models that nobody uses any more.
        if need and self.space().shortfall(need):
            self.lease_reaper.expire()
        return self._space.reserve(need, self._clock(), self.remove if evicting else None)

    def set_limits(self, limits: SpaceLimits) -> None:
        """Set budget and minimum free space. Evicts nothing until space is needed."""
        self._space.limits = limits

    def plan_gc(self, need: int) -> Eviction:
        """The models that would be evicted to free `need` bytes, with reasons."""
        return self._space.plan(need, self._clock())

    def gc(self, need: int = 0) -> tuple[int, Eviction]:
        """Remove interrupted downloads and unreferenced files, then evict for `need`
        bytes; returns bytes freed and the plan.

        Never touches anything that a running pull, a lease or a pin protects.
        """
        freed = self._drop_stale_partials() + self._remover.remove_orphans(keep=())
        plan = self.plan_gc(max(0, need - freed))
        for victim in plan.victims:
            with suppress(InUse, NotFound):  # leased or removed since the plan was made
                freed += self.remove(victim.key)
        return freed, plan

    def candidates(self) -> list[Candidate]:
        """Every model as the eviction policy sees it."""
        return self._space.candidates()

    def file_count(self) -> int:
        return self.ledger.file_count()

    def _drop_stale_partials(self) -> int:
        freed = 0
        # A running pull owns partials, and all of them look alike.
        if self._space.reservations.active():
            return 0
        for path in listed(self.paths.partial):
            with reading(path):
                freed += path.stat().st_size
            self.disk.unlink(path)
        return freed

    def _require(self, key: Digest) -> StoredModel:
        model = self.ledger.model(key)
        if model is None:
            raise NotFound(f"no model {key} in the store", hint="Pull it first.")
        return model


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
