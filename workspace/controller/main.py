"""The controller's composition root: connects, watches, waits for leadership, then reconciles and scales."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import aiohttp
import kopf

from modelimage.access import Access
from workspace.controller.cached_model_controller import CacheRunner
from workspace.controller.handlers import make_registry, watch
from workspace.controller.health_server import Liveness
from workspace.controller.kube_api import KubernetesApi
from workspace.controller.leader import Leadership
from workspace.controller.object_cache import WatchCache
from workspace.controller.observed import KEDA_GROUP
from workspace.controller.runner import Runner
from workspace.controller.scaling_loop import ScalingLoop
from workspace.controller.secrets import NamespacedResolver
from workspace.render.kubernetes import SystemSettings


@dataclass(frozen=True, slots=True)
class ControllerOptions:
    """`me` identifies this controller; `connection` is called repeatedly, since tokens are renewed."""

    me: str
    environment: SystemSettings
    access: Access
    connection: Callable[[], kopf.ConnectionInfo]
    liveness: Liveness | None = None


async def run_controller(
    options: ControllerOptions, *, stop: asyncio.Event, leading: Callable[[], None] = lambda: None
) -> None:
    """Runs until `stop`. Raises Unreachable when leadership is lost: the process must be restarted."""
    working = asyncio.create_task(_work(options, stop=stop, leading=leading))
    stopping = asyncio.create_task(stop.wait())
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
    options: ControllerOptions, *, stop: asyncio.Event, leading: Callable[[], None]
) -> None:
    async with aiohttp.ClientSession() as session:
        api = KubernetesApi(session, options.connection)
        leadership = Leadership(
            api,
            namespace=options.environment.system_namespace,
            me=options.me,
            clock=time.monotonic,
            stamp=lambda: datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            liveness=options.liveness,
        )
        # One group: losing the Lease cancels reconciling too, so that two controllers never act
        # together.
        async with asyncio.TaskGroup() as group:
            group.create_task(leadership.run())
            group.create_task(
                _lead(options, api, session, leadership=leadership, stop=stop, leading=leading)
            )


def _first(group: BaseExceptionGroup[Exception]) -> Exception:
    """The first error of a group; the others are its consequences."""
    found = group.exceptions[0]
    return _first(found) if isinstance(found, BaseExceptionGroup) else found


async def _lead(
    options: ControllerOptions, api: KubernetesApi, session: aiohttp.ClientSession, *,
    leadership: Leadership, stop: asyncio.Event, leading: Callable[[], None],
) -> None:  # fmt: skip
    """The leader's tasks. Watches start before leadership, so that a new leader has a filled cache."""
    groups = await api.groups()
    runner = Runner(
        api=api,
        cache=WatchCache(),
        resolver=NamespacedResolver(api, options.access),
        environment=options.environment,
        groups=groups,
    )
    caching = CacheRunner(api)
    registry = make_registry(runner, caching, with_keda=KEDA_GROUP in groups)
    async with asyncio.TaskGroup() as group:
        group.create_task(watch(registry, stop=stop, connection=options.connection))
        await leadership.leads.wait()
        leading()
        group.create_task(runner.run())
        group.create_task(caching.run())
        group.create_task(ScalingLoop(runner, session).run())
