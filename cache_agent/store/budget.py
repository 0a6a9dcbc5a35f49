"""Reservations against one store's space, and making room for them: the IO around `space` and `policy`."""

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
    """Bytes promised to running pulls and not written yet."""

    _open: dict[int, int] = field(default_factory=dict)
    _next: int = 0
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def exclusive(self) -> threading.RLock:
        """Held while room is made, so that two pulls don't count on the same bytes."""
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
                self._open[number] = max(0, self._open[number] - size)

    def end(self, number: int) -> None:
        with self._lock:
            self._open.pop(number, None)


@dataclass(frozen=True)
class Reservation:
    """A promise of space. A context manager: what wasn't spent is given back at the end."""

    _book: Reservations
    _number: int

    def spend(self, size: int) -> None:
        """So many of the promised bytes are on the disk now, and counted there."""
        self._book.spend(self._number, size)

    def __enter__(self) -> Reservation:
        return self

    def __exit__(self, *_: object) -> None:
        self._book.end(self._number)


@dataclass
class StoreSpace:
    """The space of one store."""

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
        """Promise `need` bytes; evicts first when there is too little. Raises NoSpace and evicts nothing in vain.

        Without `evict` only free space is promised.
        """
        with self.reservations.exclusive():
            for _ in range(3):
                view = self.view()
                short = view.shortfall(need) if need else 0
                if short == 0:
                    return self.reservations.add(need)
                plan = self.plan(short, now)
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
        """A model leased or removed since the plan was made is left; the plan is then made again."""
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
