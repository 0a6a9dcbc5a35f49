"""Executes decisions: takes a Workspace from the queue, observes, decides, writes, caches the results.

`reconcile` and the scaler decide; `workers` defines which errors are retried. Each Workspace is handled by one task at
a time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

from modelimage.errors import NotFound, WeightyardError
from workspace.controller.informers import WORKSPACES, Name, fill, sweep
from workspace.controller.kube_api import KubernetesApi
from workspace.controller.object_cache import Key, WatchCache
from workspace.controller.observed import KEDA_GROUP, Apply, Decision, Observed, reference
from workspace.controller.queue import WorkQueue
from workspace.controller.reconcile import reconcile, workspace_of
from workspace.controller.workers import work
from workspace.render.kubernetes import SystemSettings
from workspace.render.release import ResolvedImages
from workspace.schema import Workspace

Json = dict[str, Any]

logger = logging.getLogger(__name__)

# Seconds.
RESYNC: Final = 600.0
REGISTRY_RETRY: Final = 60.0

Resolver = Callable[[Workspace], Awaitable[ResolvedImages]]


@dataclass(slots=True)
class ReplicaTargets:
    """The scaler's number of replicas per Workspace. The scaler writes it, the runner reads it."""

    replicas: dict[Key, int]


class Runner:
    """Reconciles all Workspaces of a cluster. `run` works until cancelled."""

    def __init__(
        self, *, api: KubernetesApi, cache: WatchCache, resolver: Resolver, environment: SystemSettings,
        groups: frozenset[str] = frozenset(), workers: int = 8,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:  # fmt: skip
        self.api = api
        self.cache = cache
        self._resolver = resolver
        self._environment = environment
        self._groups = groups
        self._workers = workers
        self._now = now
        self.queue: WorkQueue[Key] = WorkQueue()
        self.wanted = ReplicaTargets({})

    def seen(self, document: Json, *, deleted: bool = False) -> None:
        """Handles a watch event."""
        concerned = self.cache.drop(document) if deleted else self.cache.put(document)
        for key in concerned:
            self.queue.add(key)

    def known(self, kind: str) -> dict[Name, Json]:
        """See `ObjectCache`."""
        return self.cache.known(kind)

    async def run(self) -> None:
        """Works until cancelled. Every Workspace is reconciled now, and again every `RESYNC` seconds.

        Everything is listed first: an object not yet watched must not look deleted.
        """
        kinds = (*WORKSPACES, *(("ScaledObject",) if KEDA_GROUP in self._groups else ()))
        await fill(self.api, kinds, self)
        for key in self.cache.workspaces():
            self.queue.add(key)
        async with asyncio.TaskGroup() as group:
            group.create_task(sweep(self.api, kinds, self))
            group.create_task(work(self.queue, self.reconcile, workers=self._workers))

    async def reconcile(self, key: Key) -> float | None:
        """One pass over a Workspace. Returns the seconds until the next pass. Raises the API's errors."""
        observed = self._observe(key)
        if observed is None:
            self.wanted.replicas.pop(key, None)
            return None
        decision = reconcile(observed)
        # The registry is queried only when no stored version matches, so outages don't affect what
        # runs.
        if decision.ask_registry:
            observed = replace(observed, resolved=await self._resolve(observed))
            decision = reconcile(observed)
        # Server-side apply would take over an object of the same name that others made.
        strangers = await self._strangers(observed, decision)
        if strangers:
            observed = replace(observed, objects=(*observed.objects, *strangers))
            decision = reconcile(observed)
        await self._carry_out(key, observed, decision)
        failed = isinstance(observed.resolved, WeightyardError)
        return REGISTRY_RETRY if failed or decision.ask_registry else RESYNC

    def _observe(self, key: Key) -> Observed | None:
        document = self.cache.workspace(key)
        if document is None:
            return None
        return Observed(
            document=document,
            objects=self.cache.objects(key),
            nodes=self.cache.nodes(),
            now=self._now().strftime("%Y-%m-%dT%H:%M:%SZ"),
            environment=self._environment,
            wanted=self.wanted.replicas.get(key),
            groups=self._groups,
        )

    async def _resolve(self, observed: Observed) -> ResolvedImages | WeightyardError:
        try:
            return await self._resolver(workspace_of(observed.document))
        except WeightyardError as error:
            return error

    async def _strangers(self, observed: Observed, decision: Decision) -> list[Json]:
        """Others' objects with the names about to be applied. Watches filter by label and don't show them."""
        found = []
        for action in decision.actions:
            if not isinstance(action, Apply):
                continue
            kind, name = action.document["kind"], action.document["metadata"]["name"]
            if observed.find(kind, name) is None:
                namespace = action.document["metadata"].get("namespace")
                try:
                    found.append(await self.api.get(kind, namespace, name))
                except NotFound:
                    continue
        return found

    async def _carry_out(self, key: Key, observed: Observed, decision: Decision) -> None:
        namespace, _ = key
        for action in decision.actions:
            if isinstance(action, Apply):
                # The result is cached right away, so the next pass doesn't act on the state before
                # this write.
                self.cache.put(await self.api.apply(action.document))
                logger.info("%s/%s: applied %s %s", *key, *_named(action.document))
            else:
                await self.api.delete(action.reference, namespace, uid=action.uid)
                logger.info(
                    "%s/%s: deleted %s %s", *key, action.reference.kind, action.reference.name
                )
        # The status comes last: a failed write leaves it unchanged, and the pass is retried.
        if decision.status is not None:
            document = {
                "apiVersion": observed.document["apiVersion"],
                "kind": observed.document["kind"],
                "metadata": {"name": key[1], "namespace": namespace},
                "status": decision.status,
            }
            self.cache.put(await self.api.apply(document, status=True))


def _named(document: Json) -> tuple[str, str]:
    found = reference(document)
    return found.kind, found.name
