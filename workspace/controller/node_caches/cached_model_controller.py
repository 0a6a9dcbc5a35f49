"""The controller's part for the cache: CachedModel statuses and node labels from the agents' NodeCaches.

Stores what the watches deliver, lets the pure modules compute the desired state, and writes the differences. Progress
of a node is passed on with a delay, so a thousand fetching nodes cost one write every few seconds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from cache_agent.api.cached_model import CachedModel
from cache_agent.api.kube_objects import timestamp
from modelimage.errors import NotFound
from workspace.controller import conditions
from workspace.controller.cluster.event_recorder import EventRecorder
from workspace.controller.cluster.kube_api import RESOURCES, KubernetesApi
from workspace.controller.cluster.watches import Name
from workspace.controller.node_caches import cached_models
from workspace.controller.node_caches.cache_view import (
    MODEL,
    NODE,
    ClusterView,
    Key,
    NodeView,
    ParsedModel,
)
from workspace.controller.observation import node_condition, node_labels
from workspace.controller.process.log_events import about
from workspace.controller.process.metrics import Metrics
from workspace.controller.process.queue import WorkQueue
from workspace.controller.process.workers import Workers

Json = dict[str, Any]

logger = logging.getLogger(__name__)

PROGRESS_SECONDS: Final = 5.0
RESYNC: Final = 600.0


class CacheRunner:
    """Reconciles all CachedModels and nodes of a cluster. `run` works until cancelled."""

    def __init__(
        self, api: KubernetesApi, *, workers: int = 4, metrics: Metrics | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC), node_conditions: bool = False,
    ) -> None:  # fmt: skip
        self._api = api
        self._workers = workers
        self._now = now
        self._metrics = metrics or Metrics()
        self._events = EventRecorder(api, now, self._metrics.recorded)
        self.view = ClusterView(conditions=node_conditions)
        self.queue: WorkQueue[Key] = WorkQueue()

    def seen(self, document: Json, *, deleted: bool = False) -> None:
        """Handles a watch event."""
        now, later = (self.view.drop(document), set()) if deleted else self.view.put(document)
        for key in now:
            self.queue.add(key)
        for key in later:
            self.queue.add_later(key, PROGRESS_SECONDS)

    def known(self, kind: str) -> dict[Name, Json]:
        """See `ObjectCache`."""
        return self.view.known(kind)

    def listed(self, kind: str) -> None:
        """Does nothing: the view compares no versions."""

    async def run(self) -> None:
        """Works until cancelled. The view must hold every object by then."""
        for key in [*((MODEL, m) for m in self.view.models), *((NODE, n) for n in self.view.nodes)]:
            self.queue.add(key)
        passes = self._metrics.passes("CachedModel")
        await Workers(self.queue, self.reconcile, workers=self._workers, passes=passes).run()

    async def reconcile(self, key: Key) -> float | None:
        """One pass over a CachedModel or a node. Returns the seconds until the next pass. Raises the API's errors."""
        kind, name = key
        try:
            if kind == MODEL and name in self.view.models:
                await self._report(name, self.view.models[name])
            elif kind == NODE and name in self.view.nodes:
                await self._mark(name, self.view.nodes[name])
            else:
                return None
        except NotFound:
            return None  # deleted meanwhile; the watch will report it
        return RESYNC

    async def _report(self, name: str, known: ParsedModel) -> None:
        now = timestamp(self._now().timestamp())
        if isinstance(known.model, CachedModel):
            entries = self.view.entries(known.model)
            status = cached_models.status_of(known.model, entries, before=known.status, now=now)
        else:
            status = cached_models.invalid(
                known.generation, known.model, before=known.status, now=now
            )
        if conditions.same(known.status, status):
            return
        # Events before the status: after a crash in between they are recorded again, with the same cause. In the
        # opposite order they would be lost.
        for each in cached_models.news(known.status, status):
            about = {
                "apiVersion": RESOURCES[MODEL].api, "kind": MODEL, "metadata": {"name": name, "uid": known.uid},
            }  # fmt: skip
            await self._events.record(about, each, cause=str(known.status.get("conditions")))
        document = {
            "apiVersion": RESOURCES[MODEL].api, "kind": MODEL, "metadata": {"name": name}, "status": status,
        }  # fmt: skip
        # Handled like a watch event right away: the next pass must not act on the state before this write.
        self.seen(await self._api.apply(document, status=True))

    async def _mark(self, name: str, view: NodeView) -> None:
        cache = self.view.caches.get(name)
        wanted = node_labels.wanted_marks(
            cache.cache if cache else None, self.view.readable_models(), view.labels
        )
        patch = node_labels.patch(view.marks, wanted)
        if patch is not None:
            self._took(await self._api.merge(NODE, name, patch))
        # The taint goes last and only if still present, since pods may start right after.
        if view.marks.starting and not wanted.starting:
            # Read again with its resourceVersion: taints are one list, and others write to it too.
            untainted = node_labels.without_taint(await self._api.get(NODE, None, name))
            if untainted is not None:
                self._took(await self._api.merge(NODE, name, untainted))
                logger.info(
                    "node %s: its pinned models are verified; startup taint removed",
                    name,
                    extra=about("startup taint removed", node=name),
                )

        if self.view.conditions:
            await self._condition(name, view)

    async def _condition(self, name: str, view: NodeView) -> None:
        cache = self.view.caches.get(name)
        wanted = node_condition.wanted_condition(
            cache.cache if cache else None, self.view.readable_models(), view.labels
        )
        if wanted == view.condition:
            return
        now = timestamp(self._now().timestamp())
        document = node_condition.to_apply(name, wanted, view.condition, now)
        manager = node_condition.MANAGER
        self._took(await self._api.apply(document, status=True, manager=manager))

    def _took(self, node: Json) -> None:
        self.seen({**node, "kind": NODE})
