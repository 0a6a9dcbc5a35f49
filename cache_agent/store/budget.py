"""Space accounting of one store: reservations, and eviction to satisfy them.

The IO around the pure modules `space` and `policy`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from cache_agent.observability.events import Events
from cache_agent.store.disk import is_plain_file, reading
from cache_agent.store.ledger import Ledger
from cache_agent.store.paths import StorePaths
from cache_agent.store.policy import Candidate, Eviction, Victim, evictable, plan_eviction
from cache_agent.store.recovery import listed
from cache_agent.store.space import SpaceLimits, SpaceView, refusal
from modelimage.digest import Digest
from modelimage.errors import InUse, NoSpace, NotFound


@dataclass
class Reservations:
    """Bytes reserved for running pulls and not written yet."""

    _open: dict[int, int] = field(default_factory=dict)
    _next: int = 0
    # Reentrant: `reserve` holds it while it calls `promised` and `add`.
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def exclusive(self) -> threading.RLock:
        """The lock to hold from measuring free space to reserving it, so that two pulls never count the same bytes."""
        return self._lock

    def promised(self) -> int:
        with self._lock:
            return sum(self._open.values())

    def active(self) -> bool:
        with self._lock:
            return bool(self._open)

    def add(self, need: int) -> Reservation:
        with self._lock:
            self._next += 1
            self._open[self._next] = need
            return Reservation(self, self._next)

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
    _number: int

    def spend(self, size: int) -> None:
        """Convert `size` reserved bytes into stored ones: they are on the disk now and counted there."""
        self._book.spend(self._number, size)

    def __enter__(self) -> Reservation:
        return self

    def __exit__(self, *_: object) -> None:
        self._book.end(self._number)


@dataclass
class StoreSpace:
    """Measures, reserves and frees the space of one store."""

    paths: StorePaths
    ledger: Ledger
    limits: SpaceLimits
    reservations: Reservations
    events: Events

    def view(self) -> SpaceView:
        with reading(self.paths.root):
            disk = os.statvfs(self.paths.root)
        total, free = disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize
        return SpaceView(
            # A partial's blocks are allocated when it is created, so it counts with its full size.
            own=self.ledger.stored_bytes() + self._partial_bytes(),
            promised=self.reservations.promised(),
            disk_total=total,
            disk_free=free,
            budget=self.limits.budget.of(total),
            min_free=self.limits.min_free.of(total),
        )

    def plan(self, need: int, now: float) -> Eviction:
        return plan_eviction(self.candidates(), need=need, now=now)

    def reserve(self, need: int, now: float, evict: Callable[[Digest], int] | None) -> Reservation:
        """Reserve `need` bytes, evicting models when there is too little. Raises NoSpace, before any futile eviction.

        Without `evict`, reserve free space only.
        """
        with self.reservations.exclusive():
            # Bounded: leases taken between plan and eviction shrink what a plan
            # frees, and must not loop a pull forever.
            for _ in range(3):
                view = self.view()
                short = view.shortfall(need) if need else 0
                if short == 0:
                    return self.reservations.add(need)
                plan = self.plan(short, now)
                # A plan that frees too little isn't started: models would be lost and the pull refused all the same.
                if evict is None or plan.freed < short:
                    break
                for victim in plan.victims:
                    self._evict(victim, evict)
            self.events.refused(need)
            raise self._refused(need)

    def candidates(self) -> list[Candidate]:
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
                    *(("a pin",) if model.pinned else ()),
                ),
            )
            for model in self.ledger.models()
        ]

    def _evict(self, victim: Victim, evict: Callable[[Digest], int]) -> None:
        """Evict one model. One leased or removed since the plan was made is skipped; `reserve` then plans again."""
        try:
            freed = evict(victim.key)
        except (InUse, NotFound):
            return
        self.events.evicted(victim.image, freed, victim.why)

    def _refused(self, need: int) -> NoSpace:
        candidates = self.candidates()
        held = tuple(sorted({holder for each in candidates for holder in each.held_by}))
        return NoSpace(
            refusal(need, self.view(), evictable(candidates), held),
            hint="Stop what holds models, raise the budget, or use a larger disk.",
        )

    def _partial_bytes(self) -> int:
        return sum(
            path.stat().st_size
            for path in listed(self.paths.partial)
            if path.suffix == ".data" and is_plain_file(path)
        )
