"""The agent's process: opens the node and its servers, and runs until a signal. The composition root."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from aiohttp import web

from cache_agent.api.kube.kube_client import KubeClient
from cache_agent.api.kube.token_reviews import CallerReview
from cache_agent.api.page.page_server import PageServer
from cache_agent.config import AgentConfig
from cache_agent.daemon.node_setup import (
    NodeOptions,
    NodeParts,
    control_service,
    open_node,
    reconfigure,
)
from cache_agent.daemon.prewarm_setup import (
    PrewarmParts,
    PrewarmReports,
    WakeOnEvents,
    cluster_connection,
    open_prewarming,
)
from cache_agent.daemon.servers import RunningServers, ServerOptions, open_servers
from cache_agent.net.sockets import listen
from cache_agent.node.health import Health
from cache_agent.node.metrics import Metrics
from cache_agent.node.node import Node
from cache_agent.node.threads import BlockingExecutor
from cache_agent.observability.events import Broadcast
from cache_agent.observability.log_lines import JsonLog
from cache_agent.observability.recent_events import RecentEvents
from cache_agent.observability.traces import open_traces
from cache_agent.servers.control import ControlApi
from cache_agent.servers.control_guard import guarding, new_token
from cache_agent.servers.csi.mount_client import MounterClient
from cache_agent.servers.csi.pod_events import PodEvents
from cache_agent.servers.listener import serve_control
from cache_agent.servers.node_page import LocalServers, PageLook
from cache_agent.servers.observe import ObserveApi
from modelimage.access import Access
from modelimage.errors import WeightyardError
from modelimage.tcp_listener import listen_tcp
from modelimage.trace_headers import is_on


@dataclass(frozen=True, slots=True)
class AgentOptions:
    """How to run the agent. `load` reads the settings, at the start and at SIGHUP.

    `servers` tells the rows of the machine's servers for the page; it may block.
    """

    root: Path
    load: Callable[[], AgentConfig]
    servers: LocalServers = dict


@dataclass(frozen=True, slots=True)
class AgentAddresses:
    """The addresses of a running agent, and its number of models."""

    socket: str
    port: int | None
    models: int
    servers: RunningServers


def run_agent(
    options: AgentOptions, access: Access, ready: Callable[[AgentAddresses], None]
) -> None:
    """Run until SIGTERM or SIGINT. `ready` is called once all servers are listening.

    Raises InvalidInput for invalid settings, Busy, NotWritable, NoSpace, DiskFailed.
    """
    metrics, log = Metrics(traced=is_on(os.environ)), JsonLog()
    wake_events = WakeOnEvents()
    recent = RecentEvents(time.time)
    log.adopt_libraries()
    config = options.load()
    # Each connection and each file being sent takes a descriptor; the usual soft limit of 1024 is too low.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    traces = open_traces(os.environ, time.time)
    listeners = [metrics, log, recent, wake_events, *([traces] if traces else [])]
    parts = NodeParts.real(access, Broadcast(listeners), config)
    with (
        closing(traces) if traces else nullcontext(),
        open_node(NodeOptions.from_config(options.root, config), parts) as node,
    ):
        metrics.watch(node.store, node.engine)
        for store in node.store.stores:
            if store.recovered.changed:
                log.note("recovered", root=str(store.paths.root), **vars(store.recovered))
        for root, problem in node.store.left_out.items():
            log.note("root left out", root=str(root), problem=problem)
        # Only the agent does: a single command ends before a round would.
        node.maintenance.start()
        pod_events = PodEvents(node.clock, log.note)
        listening = ServerOptions.of(config, os.environ)
        servers = partial(open_servers, node, access, listening, pod_events=pod_events)
        reload = _reloader(node, options, log)
        wanted = partial(
            open_prewarming,
            PrewarmParts(node, access, wake_events, pod_events, log.note),
            config.prewarm,
        )
        opening = Wiring(reload, servers, wanted, options.servers)
        asyncio.run(_serve(node, config, metrics, recent, ready, opening))
    log.note("stopped")


def _reloader(node: Node, options: AgentOptions, log: JsonLog) -> Callable[[], None]:
    def reload() -> None:
        try:
            reconfigure(node, options.load())
        except WeightyardError as error:
            # Invalid settings at SIGHUP must not stop a running agent.
            log.note("settings kept", problem=error.message)
        else:
            log.note("settings reloaded")

    return reload


@dataclass(frozen=True, slots=True)
class Wiring:
    """What `_serve` opens in the event loop: `servers`, and `wanted` for pre-warming. `reload` handles SIGHUP.

    `local_servers`: see `AgentOptions.servers`.
    """

    reload: Callable[[], None]
    servers: Callable[[AsyncExitStack, web.Application], Awaitable[RunningServers]]
    wanted: Callable[[], AbstractAsyncContextManager[PrewarmReports]]
    local_servers: LocalServers


async def _serve(
    node: Node,
    config: AgentConfig,
    metrics: Metrics,
    recent: RecentEvents,
    ready: Callable[[AgentAddresses], None],
    opening: Wiring,
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, opening.reload)
    executor = BlockingExecutor()
    parts: dict[str, Callable[[], str | None]] = {"maintenance": node.maintenance.problem}
    if config.servers.csi is not None:
        parts["mounter"] = MounterClient(config.servers.csi.mounter).problem
    health = Health(node.store, parts)
    # Threads of its own: a long check of the store, asked for by a command, must not look like a dead agent.
    observing = BlockingExecutor(2)
    observe = ObserveApi(observing, health, metrics)
    async with AsyncExitStack() as stack:
        stack.callback(executor.close)
        stack.callback(observing.close)
        # The stack closes in reverse: first the servers stop, then the reconciler, last the threads.
        told = await stack.enter_async_context(opening.wanted())
        service = control_service(node, told.status, told.details)
        page = PageServer(PageLook(service, executor, opening.local_servers))
        await stack.enter_async_context(page.looking())
        api = ControlApi(service, executor, observe, recent, page)
        sockets = []
        for store in node.store.stores:  # so that a command finds the agent by any of its roots
            sockets.append(listen(store.paths.socket))
            stack.callback(store.paths.socket.unlink, missing_ok=True)
        port = token = review = None
        if config.port is not None:
            review = await _review(stack, config)
            sockets.append(_listen_loopback(config.port))
            port = int(sockets[-1].getsockname()[1])
            path, token = new_token(node.store.first.paths.root)
            stack.callback(path.unlink, missing_ok=True)
        await serve_control(stack, guarding(api.application(), token, review), sockets)
        opened = await opening.servers(stack, observe.application())
        socket_path = str(node.store.first.paths.socket)
        ready(AgentAddresses(socket_path, port, len(node.store.models.all()), opened))
        settle_memory()
        await stop.wait()
        # Pulls run in threads: left running, they would delay the exit.
        node.puller.cancel_all()


async def _review(stack: AsyncExitStack, config: AgentConfig) -> CallerReview | None:
    """What judges the cluster's bearer tokens for the page; None without a cluster."""
    if not config.prewarm.in_cluster:
        return None
    client = KubeClient(cluster_connection(config.prewarm), role="agent")
    return CallerReview(await stack.enter_async_context(client), time.monotonic)


def settle_memory() -> None:
    """Exempt the objects made at the start, which live as long as the process, from garbage collection.

    Scanning them would block the event loop for 30 ms in each full collection. What comes later is collected, also when
    the start itself was without collection.
    """
    gc.collect()
    gc.freeze()
    gc.enable()


def _listen_loopback(port: int) -> socket.socket:
    server = listen_tcp("127.0.0.1", port, option="another --port")
    server.setblocking(False)
    return server
