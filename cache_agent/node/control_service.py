"""Implements the control API's operations, for the agent and for commands without one."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Protocol

from cache_agent.api.control_client import absolute_image
from cache_agent.api.node_cache import NodeCache, with_pins
from cache_agent.api.wire import (
    CheckView,
    ExplainView,
    GcBody,
    GcView,
    LeaseBody,
    LeaseView,
    ModelView,
    PullBody,
    PullDone,
    PullProgress,
    RemovedView,
    RootSpace,
    SpaceReport,
    VictimView,
    WarmBody,
    WarmView,
)
from cache_agent.fetch.pull import Pull, StartPull
from cache_agent.fetch.values import PullRequest, PullSnapshot
from cache_agent.node.activity import Activity
from cache_agent.node.explanation import explain, under_way
from cache_agent.residency.warmer import PageCacheWarmer
from cache_agent.store.policy import Eviction, evictable
from cache_agent.store.roots import Roots
from cache_agent.store.space import SpaceView
from cache_agent.store.store import Store
from cache_agent.store.values import Holder, Lease, StoredModel
from modelimage.reference import parse_image

WATCH_SECONDS = 0.2
_SUMMED = RootSpace.model_fields.keys() - {"root"}


class Check(Protocol):
    """Checks a node's store. Raises Busy for a repair while pulls run."""

    def __call__(self, *, repair: bool = False, quick: bool = False) -> CheckView: ...


class Service:
    """The operations of one node. Thread-safe."""

    def __init__(
        self,
        store: Roots,
        *,
        pull: StartPull,
        check: Check,
        activity: Activity,
        warmer: PageCacheWarmer,
        status: Callable[[], NodeCache],
    ) -> None:
        """`status` builds this node's NodeCache."""
        self._store, self._pull, self._check = store, pull, check
        self._activity, self._warmer, self._status = activity, warmer, status

    def start_pull(self, body: PullBody) -> Pull:
        """Start a pull. Raises InvalidInput."""
        return self._pull(
            PullRequest(parse_image(absolute_image(body.image)), body.variant, body.priority)
        )

    def pull(self, body: PullBody) -> Generator[PullProgress | PullDone, None, None]:
        """See `Cache.pull`."""
        handle = self.start_pull(body)
        try:
            for snapshot in handle.watch(WATCH_SECONDS):
                yield progress_view(snapshot)
            yield done_view(handle, body.image)
        finally:
            # The client stopped reading, or the pull has ended: then this does nothing.
            handle.cancel()

    def models(self) -> list[ModelView]:
        return [self._model_view(model) for model in self._store.models.all()]

    def explain(self, text: str) -> list[ExplainView]:
        return explain(text, self._activity, self._store)

    def activity(self) -> list[ExplainView]:
        return under_way(self._activity)

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

    def warm(self, body: WarmBody) -> WarmView:
        model = self._store.models.find(body.model)
        store = self._store.models.require_store(model.key)
        digests = [file.digest for file in store.ledger.model_files(model.key)]
        files = [store.paths.file(digest) for digest in digests]
        warmer = self._warmer
        if body.unlock:
            warmer.unlock(files)
        # Held while it is read, so that it isn't evicted meanwhile.
        with store.files.hold(digests):
            done = warmer.warm(files)
            locked = warmer.lock(files) if body.lock and not done.stopped else warmer.locked(files)
        return WarmView(
            key=str(model.key),
            size=done.now.size,
            resident=done.now.resident,
            believable=done.now.believable,
            read=done.read,
            locked=locked,
            cgroup=done.cgroup,
            stopped=done.stopped,
        )

    def status(self) -> NodeCache:
        return self.with_current_pins(self.report())

    def report(self) -> NodeCache:
        """The NodeCache of the reconciler's last round. An agent asks in its event loop, and no disk is read."""
        return self._status()

    def with_current_pins(self, report: NodeCache) -> NodeCache:
        """The report with pins that were set or removed since. Blocking."""
        return with_pins(report, {str(m.key) for m in self._store.models.all() if m.pinned})

    def space(self) -> SpaceReport:
        roots = [_root_space(store, view) for store, view in self._store.spaces()]
        total = {name: sum(getattr(root, name) for root in roots) for name in _SUMMED}
        return SpaceReport(root=str(self._store.first.paths.root), **total, roots=roots)

    def check(self, *, repair: bool = False, quick: bool = False) -> CheckView:
        return self._check(repair=repair, quick=quick)

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


def progress_view(snapshot: PullSnapshot) -> PullProgress:
    return PullProgress(
        state=snapshot.state.value,
        total=snapshot.total,
        done=snapshot.done,
        resumed=snapshot.resumed,
        reused=snapshot.reused,
    )


def done_view(handle: Pull, image: str) -> PullDone:
    """The result of a finished pull. Raises the error that ended it."""
    result = handle.result()
    if result is None:
        raise RuntimeError("a pull without a deadline ended without a result")
    snapshot = handle.snapshot()
    tiers: dict[str, int] = {}
    for tier, _, size in snapshot.by_source:
        tiers[tier] = tiers.get(tier, 0) + size
    return PullDone(
        key=str(result.model.key),
        path=str(result.path),
        variant=result.model.variant,
        image=image,
        size=result.model.size,
        fetched=result.fetched,
        reused=result.reused,
        resumed=snapshot.resumed,
        seconds=result.seconds,
        stale=result.stale,
        note=result.note,
        tiers=tiers,
    )


def _victims(plan: Eviction) -> list[VictimView]:
    return [
        VictimView(key=str(v.key), image=v.image, freed=v.freed, value=v.value, why=v.why)
        for v in plan.victims
    ]
