"""Space accounting of one store: measuring, reserving, and eviction to satisfy reservations.

The IO around `reservations` and the pure modules `space` and `policy`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from cache_agent.observability.events import (
    Events,
    EvictionReason,
    ModelEvicted,
    ReservationRefused,
)
from cache_agent.store.disk import Disk, listed, plain_size, total_and_free
from cache_agent.store.ledger import Ledger
from cache_agent.store.paths import StorePaths
from cache_agent.store.policy import PIN, Candidate, Eviction, Victim, evictable, plan_eviction
from cache_agent.store.removal import Remover
from cache_agent.store.reservations import Reservation, Reservations
from cache_agent.store.space import SpaceLimits, SpaceView, refusal
from modelimage.errors import InUse, NoSpace, NotFound


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
        # A file is allocated and no longer reserved in one step: in between it would count twice.
        with self.reservations.measuring():
            promised = self.reservations.promised()
            total, free = total_and_free(self.paths.root)
            # A finished partial is renamed and gets its row in one transaction: between the two it would count nowhere.
            with self.ledger.writing():
                # A partial's blocks are allocated when it is created, so it counts with its full size.
                own = self.ledger.stored_bytes() + self._partial_bytes()
        return self.limits.view(total, free, own=own, promised=promised)

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
