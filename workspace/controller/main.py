"""The controller's composition root: connects, watches, waits for leadership, then reconciles and scales."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import aiohttp

from cache_agent.api.kube.connection import Connection
from cache_agent.api.kube.kube_client import KubeClient
from modelimage.access import Access
from modelimage.allowed_registries import AllowedRegistries
from workspace.controller.cluster.kube_api import KubernetesApi
from workspace.controller.cluster.leader import Leadership, LeadershipLost
from workspace.controller.cluster.object_cache import WatchCache
from workspace.controller.cluster.secrets import NamespacedResolver
from workspace.controller.cluster.watches import Watches
from workspace.controller.cluster_page.page import ClusterLook, serving_page
from workspace.controller.loops.analysis_loop import AnalysisLoop
from workspace.controller.loops.drain_loop import DrainLoop
from workspace.controller.loops.probe_loop import ProbeLoop
from workspace.controller.loops.probe_sources import ProbeSources
from workspace.controller.loops.prometheus import Prometheus, PrometheusAddress
from workspace.controller.loops.scaling_loop import ScalingLoop
from workspace.controller.loops.start_watch import StartWatch
from workspace.controller.node_caches.cached_model_controller import CacheRunner
from workspace.controller.node_caches.heartbeats import HeartbeatLoop
from workspace.controller.process.health_server import Liveness
from workspace.controller.process.log_events import about
from workspace.controller.process.metrics import ControllerSnapshot, Metrics
from workspace.controller.runner import Runner
from workspace.render.routing import SystemSettings

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ControllerOptions:
    """`me` identifies this controller among those that may lead; `allowed` are the registries of Workspaces' images.

    `page` is the host and port of the page; None doesn't serve it. `prometheus` answers the queries of rollouts.
    `node_conditions`: Nodes get the condition of their pinned models.
    """

    me: str
    environment: SystemSettings
    access: Access
    connection: Connection
    liveness: Liveness
    allowed: AllowedRegistries = field(default_factory=AllowedRegistries)
    page: tuple[str, int] | None = None
    metrics: Metrics = field(default_factory=Metrics)
    prometheus: PrometheusAddress | None = None
    node_conditions: bool = False


async def run_controller(
    options: ControllerOptions, *, stop: asyncio.Event, leading: Callable[[], None] = lambda: None
) -> None:
    """Runs until `stop`, then releases leadership. Survives an API server that is away."""
    async with (
        KubeClient(options.connection, role="controller") as client,
        # Without a limit for all: the slow servers of one tenant would take every place. Each Workspace has its own.
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as servers,
    ):
        working = asyncio.create_task(_work(options, client, servers, leading=leading, stop=stop))
        stopping = asyncio.create_task(stop.wait())
        # Whichever ends first: the work ends by itself only with an error, which must not wait for a signal.
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        for task in (working, stopping):
            task.cancel()
        try:
            await working
        except asyncio.CancelledError:
            return
        except ExceptionGroup as group:
            raise _first(group) from group


async def _work(
    options: ControllerOptions, client: KubeClient, servers: aiohttp.ClientSession, *,
    leading: Callable[[], None], stop: asyncio.Event,
) -> None:  # fmt: skip
    """Watches all the time and leads when it can. Watching first gives a new leader a filled cache."""
    api = KubernetesApi(client)
    images = NamespacedResolver(api, options.access, options.allowed)
    runner = Runner(
        api=api,
        cache=WatchCache(),
        resolver=images,
        environment=options.environment,
        metrics=options.metrics,
    )
    cached_models = CacheRunner(
        api, metrics=options.metrics, node_conditions=options.node_conditions
    )
    options.metrics.watch(
        lambda: ControllerSnapshot(
            leads=options.liveness.leads,
            waiting={"Workspace": len(runner.queue), "CachedModel": len(cached_models.queue)},
            workspaces=runner.ready_reasons(),
            failing_watches=options.liveness.failing,
            rollouts=runner.rollout_phases(),
            versions=runner.versions(),
        )
    )
    watches = Watches(
        client,
        workspaces=runner,
        cached_models=cached_models,
        liveness=options.liveness,
        present=runner.kind_present,
    )
    namespace = options.environment.system_namespace
    leadership = Leadership(
        api,
        namespace=namespace,
        me=options.me,
        clock=time.monotonic,
        stamp=lambda: datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        liveness=options.liveness,
    )
    look = ClusterLook(runner, cached_models, lambda: options.liveness.leads)
    prometheus = Prometheus(options.prometheus, servers) if options.prometheus else None
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        group.create_task(watches.run())
        if options.page is not None:
            host, port = options.page
            await stack.enter_async_context(serving_page(look, client, host=host, port=port))
        # Nothing is decided on half a cache: what hasn't been seen yet would look as if it didn't exist.
        await watches.synced()
        while True:
            await leadership.acquire()
            leading()
            try:
                # Made anew for each term: what was seen in an earlier one is out of date.
                heartbeats = HeartbeatLoop(api, cached_models, namespace)
                scaling = ScalingLoop(runner, servers)
                starts = StartWatch(runner, api, servers)
                analysis = AnalysisLoop(runner, servers, prometheus=prometheus)
                drains = DrainLoop(runner, servers)
                probes = ProbeLoop(runner, servers, ProbeSources(api, images))
                await _lead(
                    leadership, runner.run(), cached_models.run(), scaling.run(), heartbeats.run(),
                    starts.run(), analysis.run(), probes.run(), drains.run(),
                )  # fmt: skip
            except* LeadershipLost as lost:
                # Nothing is kept that only a leader may know, so this process simply stands by again.
                logger.warning("%s", lost.exceptions[0], extra=about("leadership lost"))
            # A task group whose member fails while it is cancelled tells of the failure alone.
            if stop.is_set():
                raise asyncio.CancelledError


async def _lead(leadership: Leadership, *work: Coroutine[Any, Any, None]) -> None:
    """The leader's tasks. One group: losing the Lease cancels all, so that two controllers never act together."""
    try:
        async with asyncio.TaskGroup() as group:
            for each in (leadership.keep(), *work):
                group.create_task(each)
    except asyncio.CancelledError:
        # So that the next leader needn't wait for the Lease to lapse.
        await leadership.release()
        raise


def _first(group: BaseExceptionGroup[Exception]) -> Exception:
    """The first error of a group; the others are its consequences."""
    found = group.exceptions[0]
    return _first(found) if isinstance(found, BaseExceptionGroup) else found
