"""Space accounting of one store: reservations, and eviction to satisfy them.

The IO around the pure modules `space` and `policy`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from cache_agent.observability.events import (
    Events,
    EvictionReason,
    ModelEvicted,
    ReservationRefused,
)
from cache_agent.store.disk import Disk, listed, plain_size, reading
from cache_agent.store.ledger import Ledger
from cache_agent.store.paths import StorePaths
from cache_agent.store.policy import PIN, Candidate, Eviction, Victim, evictable, plan_eviction
from cache_agent.store.removal import Remover
from cache_agent.store.space import SpaceLimits, SpaceView, refusal
from modelimage.errors import InUse, NoSpace, NotFound


@dataclass
class Reservations:
    """Bytes reserved for running pulls and not written yet."""

    _open: dict[int, int] = field(default_factory=dict)
    _next: int = 0
    # Held for arithmetic alone: running pulls spend while another measures or removes.
    _lock: threading.Lock = field(default_factory=threading.Lock)
    # Taken before all other locks of a store. Reentrant: `reserve` evicts under it.
    _exclusive: threading.RLock = field(default_factory=threading.RLock)

    def exclusive(self) -> threading.RLock:
        """The lock to hold from measuring space to reserving it, and while a model's files are removed.

        Two pulls never count the same bytes, and none counts those of a model that is half gone.
        """
        return self._exclusive

    def promised(self) -> int:
        with self._lock:
            return sum(self._open.values())

    def active(self, beside: Reservation | None = None) -> bool:
        """Whether there are reservations other than one."""
        with self._lock:
            return bool(self._open.keys() - ({beside.number} if beside else set()))

    def add(self, need: int) -> Reservation:
        with self._lock:
            self._next += 1
            self._open[self._next] = need
            return Reservation(self, self._next)

    def left(self, number: int) -> int:
        with self._lock:
            return self._open.get(number, 0)

    def merge(self, number: int, other: int) -> None:
        with self._lock:
            self._open[number] += self._open.pop(other, 0)

    def spend(self, number: int, size: int) -> None:
        with self._lock:
            if number in self._open:
                # More may be written than was reserved; a negative rest would count as free space.
                self._open[number] = max(0, self._open[number] - size)

    def end(self, number: int) -> None:
        with self._lock:
            self._open.pop(number, None)


@dataclass(frozen=True)
class Reservation:
    """Reserved space. A context manager: the unspent rest is released at the end."""

    _book: Reservations
    number: int

    @property
    def left(self) -> int:
        """Reserved bytes that aren't spent."""
        return self._book.left(self.number)

    def spend(self, size: int) -> None:
        """Convert `size` reserved bytes into stored ones: they are on the disk now and counted there."""
        self._book.spend(self.number, size)

    def absorb(self, other: Reservation) -> None:
        """Add what another one has left, which ends with it."""
        self._book.merge(self.number, other.number)

    def __enter__(self) -> Reservation:
        return self

    def __exit__(self, *_: object) -> None:
        self._book.end(self.number)


@dataclass
class StoreSpace:
    """Measures, reserves and frees the space of one store. Thread-safe. Raises DiskFailed.

    Changing `limits` evicts nothing until space is needed. `expire` ends the leases of dead holders.
    """

    paths: StorePaths
    disk: Disk
    ledger: Ledger
    remover: Remover
    limits: SpaceLimits
    events: Events
    clock: Callable[[], float]
    expire: Callable[[], object]
    reservations: Reservations

    def view(self) -> SpaceView:
        """A snapshot of the space, in bytes. While a model is removed, its files may still count: see `survey`."""
        # First: what a pull spends meanwhile then counts twice, not never.
        promised = self.reservations.promised()
        with reading(self.paths.root):
            disk = os.statvfs(self.paths.root)
        total, free = disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize
        # A finished partial is renamed and gets its row in one transaction: between the two it would count nowhere.
        with self.ledger.writing():
            # A partial's blocks are allocated when it is created, so it counts with its full size.
            own = self.ledger.stored_bytes() + self._partial_bytes()
        return SpaceView(
            own=own,
            promised=promised,
            disk_total=total,
            disk_free=free,
            budget=self.limits.budget.of(total),
            min_free=self.limits.min_free.of(total),
        )

    def survey(self) -> tuple[SpaceView, list[Candidate]]:
        """The space, and every model as the eviction policy sees it, at one moment: no model is half removed."""
        with self.reservations.exclusive():
            return self.view(), self.candidates()

    def plan(self, need: int) -> Eviction:
        """The models that would be evicted to free `need` bytes, with reasons."""
        return plan_eviction(self.candidates(), need=need, now=self.clock())

    def reserve(
        self,
        need: int,
        *,
        evicting: bool = True,
        resumes: Collection[str] = (),
        beside: Reservation | None = None,
        spare: int = 0,
    ) -> Reservation:
        """Reserve `need` bytes, evicting the least valuable models if that suffices.

        Raises NoSpace with the numbers, before any futile eviction. Without `evicting`, reserve free space only.
        `resumes`: names of partials that `need` counts as there. Those of pulls that ended early go before a refusal.
        `beside`: what the same pull has reserved already. `spare`: as much of this as is free is reserved too, since
        measuring looks at every partial: who takes space in small pieces must not measure for each.
        """
        # First end the leases of dead holders, else a full store refuses for models that nobody uses any more.
        if need and self.view().shortfall(need):
            self.expire()
        with self.reservations.exclusive():
            # Bounded: leases taken between plan and eviction shrink what a plan
            # frees, and must not loop a pull forever.
            for _ in range(3):
                if not need:
                    return self.reservations.add(0)
                view = self.view()
                short = view.shortfall(need)
                if short == 0:
                    return self.reservations.add(min(need + spare, view.headroom))
                plan = self.plan(short)
                # A plan that frees too little isn't started: models would be lost and the pull refused all the same.
                if evicting and plan.freed < short and self._drop_leftovers(resumes, beside):
                    continue
                if not evicting or plan.freed < short:
                    break
                for victim in plan.victims:
                    self._evict(victim, EvictionReason.PULL)
            self.events.emit(ReservationRefused(need))
            raise self._refused(need)

    def gc(self, need: int = 0) -> tuple[int, Eviction]:
        """Remove interrupted downloads and unreferenced files, then evict for `need` bytes.

        Returns the bytes freed and the plan. Never touches what a running pull, a lease or a pin protects.
        """
        freed = self._drop_leftovers()
        plan = self.plan(max(0, need - freed))
        freed += sum(self._evict(victim, EvictionReason.GC) for victim in plan.victims)
        return freed, plan

    def candidates(self) -> list[Candidate]:
        """Every model as the eviction policy sees it."""
        files = self.ledger.sizes_by_model()
        return [
            Candidate(
                key=model.key,
                image=model.image,
                files=files.get(model.key, {}),
                last_used=model.last_used,
                uses=model.uses,
                fetch_seconds=model.fetch_seconds,
                held_by=(
                    *(str(lease.holder) for lease in model.leases),
                    *((PIN,) if model.pinned else ()),
                ),
            )
            for model in self.ledger.models()
        ]

    def _evict(self, victim: Victim, reason: EvictionReason) -> int:
        """Evict one model and return the bytes freed. One leased or removed since the plan was made is skipped."""
        try:
            freed = self.remover.remove_model(victim.key)
        except (InUse, NotFound):
            return 0
        self.events.emit(ModelEvicted(victim.image, freed, reason, victim.why))
        return freed

    def _refused(self, need: int) -> NoSpace:
        candidates = self.candidates()
        held = tuple(sorted({holder for each in candidates for holder in each.held_by}))
        return NoSpace(
            refusal(need, self.view(), evictable(candidates), held),
            hint="Stop what holds models, raise the budget, or use a larger disk.",
        )

    def _drop_leftovers(
        self, resumes: Collection[str] = (), beside: Reservation | None = None
    ) -> int:
        """Remove what pulls left that ended early; returns the bytes freed."""
        freed = self._drop_stale_partials(resumes, beside)
        # The journals that stood for them are gone with the partials.
        self.remover.remove_descriptions()
        return freed + self.remover.remove_orphans(keep=())

    def _drop_stale_partials(self, resumes: Collection[str], beside: Reservation | None) -> int:
        # Excluded until the last is gone: a pull that begins meanwhile would lose the partials that it has just opened.
        with self.reservations.exclusive():
            # A running pull owns partials, and all of them look alike.
            if self.reservations.active(beside):
                return 0
            freed = 0
            for path in listed(self.paths.partial):
                if path.stem not in resumes:
                    freed += plain_size(path) or 0
                    self.disk.remove_tree(path)
            return freed

    def _partial_bytes(self) -> int:
        # A pull renames its partials meanwhile: one that is gone isn't an error.
        return sum(
            plain_size(path) or 0 for path in listed(self.paths.partial) if path.suffix == ".data"
        )
