"""Notices agents that no longer renew their heartbeat Lease, and marks their NodeCaches.

An agent that is dead or cut off can't report it. Its conditions become Unknown here, from which all else follows: the
node loses its model labels, CachedModels count it as failed, Workspaces start no server there.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from cache_agent.api.heartbeat import (
    HEARTBEAT_SELECTOR,
    NO_HEARTBEAT,
    RENEW_SECONDS,
    SILENT_SECONDS,
    is_silent,
    node_of,
)
from cache_agent.api.kube.refusals import Conflict
from cache_agent.api.kube_objects import timestamp
from cache_agent.api.node_cache import CONDITIONS, NodeCache
from modelimage.errors import NotFound, WeightyardError
from workspace.controller.cluster.kube_api import KubernetesApi
from workspace.controller.node_caches.cache_view import CACHE
from workspace.controller.node_caches.cached_model_controller import CacheRunner
from workspace.controller.process.log_events import about

Json = dict[str, Any]

logger = logging.getLogger(__name__)

PERIOD: Final = RENEW_SECONDS


@dataclass
class Heartbeats:
    """The heartbeat Leases' last changes, on our own clock: an agent's clock may be wrong."""

    _seen: dict[str, tuple[str, float]] = field(default_factory=dict)
    _listed: float = float("-inf")

    def observe(self, versions: Mapping[str, str], now: float) -> frozenset[str]:
        """The silent nodes. `versions`: each node's Lease's resourceVersion, just listed; `now` in seconds."""
        # No list for long: the API server was away, and agents couldn't renew either. All get their whole time again.
        if now - self._listed > 2 * PERIOD:
            self._seen.clear()
        self._listed = now
        # A node without a Lease isn't judged: its agent reports from elsewhere, or may write no Leases.
        self._seen = {
            node: before
            if (before := self._seen.get(node)) is not None and before[0] == version
            else (version, now)
            for node, version in versions.items()
        }
        return frozenset(
            node for node, (_, since) in self._seen.items() if now - since >= SILENT_SECONDS
        )


def silenced(cache: NodeCache, now: str) -> Json:
    """The patch that makes a NodeCache's conditions Unknown, unless it has changed since it was read."""
    text = (
        f"The agent of this node has not renewed its Lease for {SILENT_SECONDS:.0f} s. See its pod and its node: "
        f"`kubectl get pods --all-namespaces --field-selector spec.nodeName={cache.name}`."
    )
    kinds = dict.fromkeys((*CONDITIONS, *(each.type for each in cache.status.conditions)))
    return {
        "metadata": {"resourceVersion": cache.metadata.resource_version},
        "status": {
            "conditions": [
                {
                    "type": kind, "status": "Unknown", "reason": NO_HEARTBEAT, "message": text,
                    "observedGeneration": 1, "lastTransitionTime": now,
                }
                for kind in kinds
            ]
        },
    }  # fmt: skip


class HeartbeatLoop:
    """Lists the Leases now and then, and marks the NodeCaches of silent agents. The agents undo it themselves."""

    # Lists instead of a watch: 5,000 Leases are 3 MB every 20 s, but 250 events a second.

    def __init__(
        self, api: KubernetesApi, cached_models: CacheRunner, namespace: str, *,
        monotonic: Callable[[], float] = time.monotonic,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:  # fmt: skip
        self._api = api
        self._cached_models = cached_models
        self._namespace = namespace
        self._monotonic = monotonic
        self._clock = clock
        self._heartbeats = Heartbeats()

    async def run(self) -> None:
        """Works until cancelled."""
        while True:
            try:
                await self.look()
            except WeightyardError as error:
                logger.warning(
                    "heartbeats of agents can't be read: %s",
                    error.message,
                    extra=about("heartbeats not read"),
                )
            except Exception:
                # What is odd about one object must not end the controller.
                logger.exception(
                    "heartbeats of agents can't be read", extra=about("heartbeats not read")
                )
            await asyncio.sleep(PERIOD)

    async def look(self) -> None:
        """Marks the agents that are silent now. Raises the API's errors."""
        # The reports of before the list: whoever comes back, renews first and writes its report after. So a report
        # that is among these would have been preceded by a renewal that the list shows.
        before = {name: view.cache for name, view in self._cached_models.view.caches.items()}
        silent = self._heartbeats.observe(await self._versions(), self._monotonic())
        await self._mark(before[name] for name in sorted(silent & before.keys()))

    async def _versions(self) -> dict[str, str]:
        pages = self._api.pages("Lease", namespace=self._namespace, labels=HEARTBEAT_SELECTOR)
        return {
            node_of(each["metadata"]["name"]): str(each["metadata"].get("resourceVersion", ""))
            async for page in pages
            for each in page
        }

    async def _mark(self, caches: Iterable[NodeCache]) -> None:
        now = timestamp(self._clock().timestamp())
        for cache in caches:
            if is_silent(cache):
                continue
            try:
                marked = await self._api.merge(CACHE, cache.name, silenced(cache, now), status=True)
            except (Conflict, NotFound):
                continue  # the agent is back, or its node is gone
            except WeightyardError as error:
                logger.warning(
                    "%s can't be marked as silent: %s",
                    cache.name,
                    error.message,
                    extra=about("agent not marked", node=cache.name),
                )
                continue
            logger.warning(
                "the agent of node %s is silent",
                cache.name,
                extra=about("agent silent", node=cache.name),
            )
            self._cached_models.seen({**marked, "kind": CACHE})
