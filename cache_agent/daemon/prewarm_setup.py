"""Assembles pre-warming for one node from the settings. Part of the composition root."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from cache_agent.api.node_cache import NodeCache, NodeCacheStatus
from cache_agent.config import PrewarmSection
from cache_agent.node.node import Node
from cache_agent.node.threads import BlockingExecutor, call_soon
from cache_agent.observability.events import Events, PullEnd
from cache_agent.prewarm.cluster.connection import Connection, in_cluster, of_kubeconfig
from cache_agent.prewarm.cluster.desired_models import MODELS_PATH, NODES_PATH, ClusterSource
from cache_agent.prewarm.cluster.kube_client import Api
from cache_agent.prewarm.cluster.node_cache_writer import NodeCacheWriter
from cache_agent.prewarm.cluster.watch import Follower
from cache_agent.prewarm.directory_source import DesiredState
from cache_agent.prewarm.node_status import folder_of, node_cache, node_facts, node_name
from cache_agent.prewarm.pull_secrets import ClusterSecrets, PullCredentials, SecretFiles
from cache_agent.prewarm.reconciler import Reconciler
from cache_agent.prewarm.reconciler_options import ReconcilerOptions
from cache_agent.prewarm.runtime import ImageService, RuntimeImages
from cache_agent.prewarm.values import DesiredModel
from cache_agent.store.space import Amount
from modelimage.access import Access, open_reader


class WakeOnEvents(Events):
    """Wakes the reconciler after changes of the store that it didn't make. `tell` is called in any thread."""

    def __init__(self) -> None:
        self.tell: Callable[[], None] = lambda: None

    def pull_ended(self, end: PullEnd) -> None:
        self.tell()

    def evicted(self, image: str, freed: int, why: str) -> None:
        self.tell()

    def expired(self, lease: str, holder: str) -> None:
        self.tell()


@dataclass(frozen=True, slots=True)
class PrewarmParts:
    """The parts that pre-warming uses beside its settings. `note` writes to the log."""

    node: Node
    access: Access
    wake_events: WakeOnEvents
    note: Callable[..., None]


@asynccontextmanager
async def open_prewarming(
    parts: PrewarmParts, section: PrewarmSection
) -> AsyncIterator[Callable[[], NodeCache]]:
    """Run pre-warming until left. Yields a function that returns the current NodeCache.

    Raises NotFound or InvalidInput for unusable settings; NotWritable.
    """
    async with AsyncExitStack() as stack:
        executor = BlockingExecutor()
        stack.callback(executor.close)
        name = section.node or node_name()
        if section.kubernetes or section.kubeconfig:
            api = await stack.enter_async_context(Api(_connection(section)))
            reconciler, tasks = _of_cluster(parts, section, executor, api, name)
        else:
            reconciler, tasks = _of_folder(parts, section, executor)
        loop = asyncio.get_running_loop()
        # Events come from any thread, but the reconciler belongs to the event loop.
        parts.wake_events.tell = partial(call_soon, loop, reconciler.stale)
        await stack.enter_async_context(_running(reconciler.run(), *tasks))
        # Kept between calls, because conditions keep the time of their last transition.
        previous = [NodeCacheStatus()]

        def stands() -> NodeCache:
            previous[0] = reconciler.status(previous[0])
            return node_cache(name, previous[0])

        yield stands


def _reconciler(
    parts: PrewarmParts,
    section: PrewarmSection,
    executor: BlockingExecutor,
    credentials: PullCredentials,
) -> Reconciler:
    return Reconciler(
        node=parts.node,
        executor=executor,
        credentials=credentials,
        open_reader=partial(open_reader, access=parts.access),
        runtime=RuntimeImages(_service(section), credentials.authorize, parts.node.clock),
        note=parts.note,
        facts=node_facts(),
        options=ReconcilerOptions(section.fetches, Amount.parse(section.bandwidth).bytes),
    )


def _service(section: PrewarmSection) -> ImageService | None:
    if section.runtime is None:
        return None
    # Imported here: an agent without a runtime socket doesn't need gRPC and its memory.
    from cache_agent.prewarm.cri import Cri  # noqa: PLC0415

    return Cri(section.runtime)


Tasks = list[Coroutine[Any, Any, None]]


def _of_folder(
    parts: PrewarmParts, section: PrewarmSection, executor: BlockingExecutor
) -> tuple[Reconciler, Tasks]:
    credentials = PullCredentials(parts.access, SecretFiles(section.secrets))
    reconciler = _reconciler(parts, section, executor, credentials)
    folder = folder_of(section.path, parts.node.store.first.paths.root)
    if section.path is None:
        folder.make()
    labels = dict(section.labels)

    def tell(found: DesiredState) -> None:
        chosen = [model for model in found.models.values() if model.selects(labels)]
        reconciler.want([DesiredModel.of(model) for model in chosen], found.problems)
        for problem in found.problems:
            parts.note("wanted document refused", problem=problem)

    return reconciler, [folder.watch(tell)]


def _of_cluster(
    parts: PrewarmParts, section: PrewarmSection, executor: BlockingExecutor, api: Api, name: str
) -> tuple[Reconciler, Tasks]:
    secrets = (
        SecretFiles(section.secrets) if section.secrets else ClusterSecrets(api, api.namespace)
    )
    reconciler = _reconciler(parts, section, executor, PullCredentials(parts.access, secrets))
    wanted = ClusterSource(reconciler.want, reconciler.trouble)
    if parts.node.peers is not None:
        wanted.labelled = parts.node.peers.take_zone
    reconciler.label_gone = wanted.label_gone
    reporter = NodeCacheWriter(
        api,
        name,
        reconciler.status,
        lambda: reconciler.busy,
        parts.note,
        parts.node.engine.monotonic,
    )
    reconciler.changed = reporter.changed
    node = {"fieldSelector": f"metadata.name={name}"}
    return reconciler, [
        Follower(api, MODELS_PATH, wanted.models).run(),
        Follower(api, NODES_PATH, wanted.node, node).run(),
        reporter.run(),
    ]


def _connection(section: PrewarmSection) -> Connection:
    return of_kubeconfig(section.kubeconfig) if section.kubeconfig else in_cluster(os.environ)


@asynccontextmanager
async def _running(*work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run coroutines beside the body. Leaving the body cancels them; a failure of one cancels the body."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(each) for each in work]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
