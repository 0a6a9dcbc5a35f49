"""Assembles pre-warming for one node from the settings. Part of the composition root."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from cache_agent.api.kube.connection import Connection, in_cluster
from cache_agent.api.kube.follower import Follower
from cache_agent.api.kube.kube_client import KubeClient
from cache_agent.api.kube.kubeconfig import from_kubeconfig
from cache_agent.api.node_cache import NodeCache, NodeCacheStatus
from cache_agent.config import PrewarmSection
from cache_agent.net.node_name import node_name
from cache_agent.node.desired_detail import DesiredDetails, RefusedDocument
from cache_agent.node.node import Node
from cache_agent.node.threads import BlockingExecutor, call_soon
from cache_agent.observability.events import (
    DesiredModelFailed,
    DesiredModelReady,
    Event,
    Events,
    LeaseExpired,
    ModelEvicted,
    PullEnded,
)
from cache_agent.prewarm.cluster.desired_models import (
    MODELS_PATH,
    NODES_PATH,
    ClusterSource,
    NodeLabels,
)
from cache_agent.prewarm.cluster.heartbeat import Heartbeat
from cache_agent.prewarm.cluster.node_cache_writer import NodeCacheWriter
from cache_agent.prewarm.cluster.node_owner import NodeOwner
from cache_agent.prewarm.directory_source import DesiredState
from cache_agent.prewarm.node_status import folder_of, node_cache, node_facts
from cache_agent.prewarm.outcome_log import OutcomeLog
from cache_agent.prewarm.pull_secrets import ClusterSecrets, PullCredentials, SecretFiles
from cache_agent.prewarm.reconciler import Reconciler
from cache_agent.prewarm.reconciler_options import ReconcilerOptions
from cache_agent.prewarm.runtime import ImageService, RuntimeImages
from cache_agent.prewarm.values import DesiredModel
from cache_agent.servers.csi.pod_events import PodEvents
from cache_agent.store.space import Amount
from modelimage.access import Access, open_reader
from modelimage.errors import WeightyardError


def _ignore() -> None:
    """Does nothing: before pre-warming runs, and after it."""


class WakeOnEvents(Events):
    """Wakes the reconciler after changes of the store that it didn't make. Called in any thread."""

    def __init__(self) -> None:
        self._tell: Callable[[], None] = _ignore

    @contextmanager
    def waking(self, tell: Callable[[], None]) -> Iterator[None]:
        """Call `tell` after each such change, in the thread where it happened, until left."""
        self._tell = tell
        try:
            yield
        finally:
            self._tell = _ignore

    def emit(self, event: Event) -> None:
        if isinstance(event, PullEnded | ModelEvicted | LeaseExpired):
            self._tell()


@dataclass(frozen=True, slots=True)
class PrewarmParts:
    """The parts that pre-warming uses beside its settings. `note` writes to the log."""

    node: Node
    access: Access
    wake_events: WakeOnEvents
    pod_events: PodEvents
    note: Callable[..., None]


@dataclass(frozen=True, slots=True)
class PrewarmReports:
    """What running pre-warming tells, in the event loop: the current NodeCache, and details of its desired models."""

    status: Callable[[], NodeCache]
    details: Callable[[], DesiredDetails]


@asynccontextmanager
async def open_prewarming(
    parts: PrewarmParts, section: PrewarmSection
) -> AsyncIterator[PrewarmReports]:
    """Run pre-warming until left. Yields what tells of it.

    Raises NotFound or InvalidInput for unusable settings; NotWritable.
    """
    async with AsyncExitStack() as stack:
        executor = BlockingExecutor()
        stack.callback(executor.close)
        name = section.node or node_name()
        if section.in_cluster:
            api = await stack.enter_async_context(
                KubeClient(cluster_connection(section), role="agent")
            )
            reconciler, tasks = _of_cluster(parts, section, executor, api, name)
        else:
            reconciler, tasks = _of_folder(parts, section, executor)
        loop = asyncio.get_running_loop()
        # Events come from any thread, but the reconciler belongs to the event loop.
        stack.enter_context(parts.wake_events.waking(partial(call_soon, loop, reconciler.stale)))
        await stack.enter_async_context(_running(reconciler.run(), *tasks))
        # Kept between calls, because conditions keep the time of their last transition.
        previous = [NodeCacheStatus()]

        def stands() -> NodeCache:
            previous[0] = reconciler.status(previous[0])
            return node_cache(name, previous[0])

        yield PrewarmReports(stands, reconciler.details)


def _reconciler(
    parts: PrewarmParts,
    section: PrewarmSection,
    executor: BlockingExecutor,
    credentials: PullCredentials,
    *,
    label_gone: Callable[[str], Awaitable[None]] | None = None,
    changed: Callable[[], None] = _ignore,
) -> Reconciler:
    node = parts.node
    return Reconciler(
        store=node.store,
        pull=node.pull,
        warmer=node.warmer,
        executor=executor,
        credentials=credentials,
        open_reader=partial(open_reader, access=parts.access),
        runtime=RuntimeImages(_service(section), credentials.authorize, node.clock),
        outcomes=OutcomeLog(
            parts.note,
            node.engine.monotonic,
            ready=lambda seconds: node.events.emit(DesiredModelReady(seconds)),
            failed=lambda *failure: node.events.emit(DesiredModelFailed(*failure)),
        ),
        note=parts.note,
        clock=node.clock,
        monotonic=node.engine.monotonic,
        platform=node.machine.platform,
        label_gone=label_gone,
        changed=changed,
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

    known: set[RefusedDocument] = set()

    def tell(found: DesiredState) -> None:
        chosen = [model for model in found.models.values() if model.selects(labels)]
        reconciler.want([DesiredModel.from_cached_model(model) for model in chosen], found.refused)
        for each in found.refused:
            # Once, and not again whenever something else in the directory changes.
            if each not in known:
                parts.note("desired model document rejected", problem=each.message)
        known.clear()
        known.update(found.refused)

    return reconciler, [folder.watch(tell)]


def _of_cluster(
    parts: PrewarmParts,
    section: PrewarmSection,
    executor: BlockingExecutor,
    api: KubeClient,
    name: str,
) -> tuple[Reconciler, Tasks]:
    secrets = (
        SecretFiles(section.secrets) if section.secrets else ClusterSecrets(api, api.namespace)
    )
    peers, changed = parts.node.peers, asyncio.Event()
    labels = NodeLabels(peers.take_zone) if peers is not None else NodeLabels()
    reconciler = _reconciler(
        parts,
        section,
        executor,
        PullCredentials(parts.access, secrets),
        label_gone=labels.gone,
        changed=changed.set,
    )
    owner = NodeOwner(api, name)
    reporter = NodeCacheWriter(
        api,
        owner,
        reconciler.status,
        lambda: reconciler.busy,
        changed,
        parts.note,
        parts.node.engine.monotonic,
    )
    # A list that is made again may be that of a restored server, which has an earlier report too.
    wanted = ClusterSource(reconciler.want, reconciler.trouble, labels, reporter.rewrite)
    heartbeat = Heartbeat(
        api,
        owner,
        reporter.rewrite,
        parts.note,
        parts.node.clock,
        parts.node.engine.monotonic,
    )
    node = {"fieldSelector": f"metadata.name={name}"}
    return reconciler, [
        heartbeat.run(),
        parts.pod_events.write(api, name),
        Follower(api, MODELS_PATH, wanted.models).run(),
        Follower(api, NODES_PATH, wanted.node, node).run(),
        reporter.run(),
    ]


def cluster_connection(section: PrewarmSection) -> Connection:
    """How to reach the API server of the agent's cluster. Raises NotFound or InvalidInput for unusable settings."""
    if section.kubeconfig is None:
        return in_cluster(os.environ)
    return from_kubeconfig([section.kubeconfig], programs=False)


@asynccontextmanager
async def _running(*work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run coroutines beside the body. Leaving the body cancels them; a failure of one cancels the body."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each) for each in work]
            try:
                yield
            finally:
                for task in tasks:
                    # The group would wait for tasks that never end by themselves.
                    task.cancel()
    except ExceptionGroup as failed:
        # An address that is taken, say: the body's own error, which ends the agent with its reason and no traceback.
        (first, *others) = failed.exceptions
        if others or not isinstance(first, WeightyardError):
            raise
        raise first from failed
