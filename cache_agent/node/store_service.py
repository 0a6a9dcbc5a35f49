"""The control API's operations that need the store alone. Imports nothing that fetches: short commands use it."""

from __future__ import annotations

from dataclasses import fields

from cache_agent.api.wire import (
    GcBody,
    GcView,
    LeaseBody,
    LeaseView,
    ModelView,
    RemovedView,
    RootSpace,
    SpaceReport,
    VictimView,
)
from cache_agent.store.policy import Eviction, evictable
from cache_agent.store.roots import Roots
from cache_agent.store.space import SpaceView
from cache_agent.store.store import Store
from cache_agent.store.values import Holder, Lease, StoredModel

_EVERYTHING = 1 << 62  # bytes
_SUMMED = {each.name for each in fields(RootSpace)} - {"root"}


class StoreService:
    """The operations on a node's store. Thread-safe."""

    def __init__(self, store: Roots) -> None:
        self._store = store

    def models(self) -> list[ModelView]:
        return [self._model_view(model) for model in self._store.models.all()]

    def find(self, text: str) -> ModelView:
        return self._model_view(self._store.models.find(text))

    def lease(self, body: LeaseBody) -> LeaseView:
        holder = Holder.parse(body.holder)
        return lease_view(
            self._store.leases.take(self._store.models.find(body.model).key, holder, body.id)
        )

    def leases(self) -> list[LeaseView]:
        return [lease_view(lease) for lease in self._store.leases.all()]

    def release(self, lease_id: str) -> bool:
        return self._store.leases.release(lease_id)

    def pin(self, model: str, *, pinned: bool) -> ModelView:
        key = self._store.models.find(model).key
        self._store.models.pin(key, pinned=pinned)
        return self.find(str(key))

    def remove(self, model: str, *, unpin: bool = False) -> RemovedView:
        key = self._store.models.find(model).key
        return RemovedView(key=str(key), freed=self._store.models.remove(key, unpin=unpin))

    def gc(self, body: GcBody) -> GcView:
        freed, victims, held = 0, [], set()
        # The fullest root first: there space is needed most.
        for store, _ in sorted(self._store.spaces(), key=lambda each: each[1].headroom):
            need = max(0, body.need - freed)
            # A plan, too, must not count on holders that were killed: without an agent no one else ends their leases.
            store.leases.expire()
            if body.dry_run:
                plan = store.space.plan(need)
                gained = plan.freed
            else:
                gained, plan = store.space.gc(need)
            freed += gained
            victims += _victims(plan)
            held |= {*plan.held_by}
        short = sorted(held) if freed < body.need else []
        return GcView(freed=freed, victims=victims, held_by=short)

    def eviction_order(self) -> list[VictimView]:
        """The models that may be evicted, first the one that goes first in its root."""
        return [
            victim
            for store in self._store.stores
            for victim in _victims(store.space.plan(_EVERYTHING))
        ]

    def space(self) -> SpaceReport:
        roots = [_root_space(store, view) for store, view in self._store.spaces()]
        total = {name: sum(getattr(root, name) for root in roots) for name in _SUMMED}
        return SpaceReport(root=str(self._store.first.paths.root), **total, roots=roots)

    def _model_view(self, model: StoredModel) -> ModelView:
        return ModelView(
            key=str(model.key),
            path=str(model.path),
            variant=model.variant,
            images=self._store.models.images_of(model.key) or [model.image],
            size=model.size,
            files=model.files,
            added=model.added,
            last_used=model.last_used,
            pinned=model.pinned,
            verified=model.verified,
            leases=[lease_view(lease) for lease in model.leases],
        )


def _root_space(store: Store, view: SpaceView) -> RootSpace:
    return RootSpace(
        root=str(store.paths.root),
        own=view.own,
        promised=view.promised,
        headroom=max(0, view.headroom),
        budget=view.budget,
        min_free=view.min_free,
        disk_total=view.disk_total,
        disk_free=view.disk_free,
        evictable=evictable(store.space.candidates()),
        models=len(store.models.all()),
        files=store.files.count(),
    )


def lease_view(lease: Lease) -> LeaseView:
    return LeaseView(
        id=lease.id,
        model=str(lease.model),
        holder=str(lease.holder),
        since=lease.since,
        pod=lease.pod,
    )


def _victims(plan: Eviction) -> list[VictimView]:
    return [
        VictimView(key=str(v.key), image=v.image, freed=v.freed, value=v.value, why=v.why)
        for v in plan.victims
    ]
