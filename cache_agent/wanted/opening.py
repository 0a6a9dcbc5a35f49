"""Which parts make wanted state work on one node, from the settings: part of the composition root."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from cache_agent.api.node_cache import NodeCache, NodeCacheStatus
from cache_agent.config import WantedSection
from cache_agent.events import Events, PullEnd
from cache_agent.faces.bridge import Bridge, call_soon
from cache_agent.node import Node
from cache_agent.store.space import Amount
from cache_agent.wanted.cluster.client import Api
from cache_agent.wanted.cluster.connection import Connection, in_cluster, of_kubeconfig
from cache_agent.wanted.cluster.reporting import Reporter
from cache_agent.wanted.cluster.source import MODELS_PATH, NODES_PATH, ClusterWanted
from cache_agent.wanted.cluster.watching import Follower
from cache_agent.wanted.credentials import ClusterSecrets, PullCredentials, SecretFiles
from cache_agent.wanted.folder import Wanted
from cache_agent.wanted.keeper import Keeper
from cache_agent.wanted.options import KeeperOptions
from cache_agent.wanted.runtime import ImageService, RuntimeImages
from cache_agent.wanted.standing import folder_of, node_cache, node_facts, node_name
from cache_agent.wanted.values import Wish
from modelimage.access import Access, open_reader


class Waker(Events):
    """Tells of what happens in the store by other ways than through wishes. `tell` may be called in any thread."""

    def __init__(self) -> None:
        self.tell: Callable[[], None] = lambda: None

    def pull_ended(self, end: PullEnd) -> None:
        self.tell()

    def evicted(self, image: str, freed: int, why: str) -> None:
        self.tell()

    def expired(self, lease: str, holder: str) -> None:
        self.tell()


@dataclass(frozen=True, slots=True)
class WantedParts:
    """What it is made of beside its settings. `note` writes to the log."""

    node: Node
    access: Access
    waker: Waker
    note: Callable[..., None]


@asynccontextmanager
async def open_wanted(
    parts: WantedParts, section: WantedSection
) -> AsyncIterator[Callable[[], NodeCache]]:
    """Follow what is wanted until left. Gives how this node stands, as its NodeCache.

    Raises NotFound, InvalidInput for settings that lead nowhere; NotWritable.
    """
    async with AsyncExitStack() as stack:
        bridge = Bridge()
        stack.callback(bridge.close)
        name = section.node or node_name()
        if section.kubernetes or section.kubeconfig:
            api = await stack.enter_async_context(Api(_connection(section)))
            keeper, tasks = _of_cluster(parts, section, bridge, api, name)
        else:
            keeper, tasks = _of_folder(parts, section, bridge)
        loop = asyncio.get_running_loop()
        parts.waker.tell = partial(call_soon, loop, keeper.stale)
        await stack.enter_async_context(_running(keeper.run(), *tasks))
        previous = [NodeCacheStatus()]

        def stands() -> NodeCache:
            previous[0] = keeper.status(previous[0])
            return node_cache(name, previous[0])

        yield stands


def _keeper(
    parts: WantedParts, section: WantedSection, bridge: Bridge, credentials: PullCredentials
) -> Keeper:
    return Keeper(
        node=parts.node,
        bridge=bridge,
        credentials=credentials,
        open_reader=partial(open_reader, access=parts.access),
        runtime=RuntimeImages(_service(section), credentials.authorize, parts.node.clock),
        note=parts.note,
        facts=node_facts(),
        options=KeeperOptions(section.fetches, Amount.parse(section.bandwidth).bytes),
    )


def _service(section: WantedSection) -> ImageService | None:
    if section.runtime is None:
        return None
    # An agent that asks no runtime is spared the memory of gRPC.
    from cache_agent.wanted.cri import Cri  # noqa: PLC0415

    return Cri(section.runtime)


Tasks = list[Coroutine[Any, Any, None]]


def _of_folder(parts: WantedParts, section: WantedSection, bridge: Bridge) -> tuple[Keeper, Tasks]:
    credentials = PullCredentials(parts.access, SecretFiles(section.secrets))
    keeper = _keeper(parts, section, bridge, credentials)
    folder = folder_of(section.path, parts.node.store.first.paths.root)
    if section.path is None:
        folder.make()
    labels = dict(section.labels)

    def tell(found: Wanted) -> None:
        chosen = [model for model in found.models.values() if model.selects(labels)]
        keeper.want([Wish.of(model) for model in chosen], found.problems)
        for problem in found.problems:
            parts.note("wanted document refused", problem=problem)

    return keeper, [folder.watch(tell)]


def _of_cluster(
    parts: WantedParts, section: WantedSection, bridge: Bridge, api: Api, name: str
) -> tuple[Keeper, Tasks]:
    secrets = (
        SecretFiles(section.secrets) if section.secrets else ClusterSecrets(api, api.namespace)
    )
    keeper = _keeper(parts, section, bridge, PullCredentials(parts.access, secrets))
    wanted = ClusterWanted(keeper.want, keeper.trouble)
    if parts.node.peers is not None:
        wanted.labelled = parts.node.peers.take_zone
    keeper.label_gone = wanted.label_gone
    reporter = Reporter(
        api, name, keeper.status, lambda: keeper.busy, parts.note, parts.node.engine.monotonic
    )
    keeper.changed = reporter.changed
    node = {"fieldSelector": f"metadata.name={name}"}
    return keeper, [
        Follower(api, MODELS_PATH, wanted.models).run(),
        Follower(api, NODES_PATH, wanted.node, node).run(),
        reporter.run(),
    ]


def _connection(section: WantedSection) -> Connection:
    return of_kubeconfig(section.kubeconfig) if section.kubeconfig else in_cluster(os.environ)


@asynccontextmanager
async def _running(*work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run these beside what is inside; they end with it, and a failure of one ends it."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(each) for each in work]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
