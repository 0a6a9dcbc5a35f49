"""Implements the control API's operations, for the agent and for commands without one."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import replace
from typing import Protocol

from cache_agent.api.control_client import absolute_image
from cache_agent.api.node_cache import NodeCache, with_pins
from cache_agent.api.wire import (
    CheckView,
    ExplainView,
    PullBody,
    PullDone,
    PullProgress,
    RemovedView,
    WarmBody,
    WarmView,
)
from cache_agent.fetch.pull import Pull, StartPull
from cache_agent.fetch.values import PullRequest, PullSnapshot
from cache_agent.node.activity import Activity
from cache_agent.node.desired_detail import DesiredDetails
from cache_agent.node.explanation import explain, under_way
from cache_agent.node.store_service import StoreService
from cache_agent.residency.warmer import PageCacheWarmer
from cache_agent.store.roots import Roots
from modelimage.reference import parse_image
from modelimage.spans import traceparent
from modelimage.trace_headers import is_parent

WATCH_SECONDS = 0.2


class Check(Protocol):
    """Checks a node's store. Raises Busy for a repair while pulls run."""

    def __call__(self, *, repair: bool = False, quick: bool = False) -> CheckView: ...


class Service(StoreService):
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
        details: Callable[[], DesiredDetails],
    ) -> None:
        """`status` builds this node's NodeCache, `details` tells of its desired models."""
        super().__init__(store)
        self._pull, self._check = pull, check
        self._activity, self._warmer = activity, warmer
        self._status, self._details = status, details

    def start_pull(self, body: PullBody, parent: str = "") -> Pull:
        """Start a pull, in the trace of a `traceparent` header or of the caller. Raises InvalidInput."""
        image = parse_image(absolute_image(body.image))
        trace = parent if is_parent(parent) else traceparent()
        return self._pull(PullRequest(image, body.variant, body.priority, trace=trace))

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

    def explain(self, text: str) -> list[ExplainView]:
        return self.explain_with(self.details(), text)

    def details(self) -> DesiredDetails:
        """What is told of desired models, of the same round as `report`, and called as that is."""
        return self._details()

    def explain_with(self, desired: DesiredDetails, text: str) -> list[ExplainView]:
        """See `explain`. Blocking; `desired` are what `details` returned."""
        return explain(text, self._activity, self._store, desired)

    def activity(self) -> list[ExplainView]:
        return under_way(self._activity)

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

    def check(self, *, repair: bool = False, quick: bool = False) -> CheckView:
        return self._check(repair=repair, quick=quick)


def with_desired(removed: RemovedView, before: NodeCache) -> RemovedView:
    """A removed model with the CachedModels that bring it back, from the report before it was removed."""
    names = [each.name for each in before.status.desired if each.model_key == removed.key]
    return replace(removed, desired_by=names)


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
        tiers={tier: size for tier, size, _ in snapshot.by_tier},
        tier_seconds={tier: seconds for tier, _, seconds in snapshot.by_tier},
    )
