"""The controller's page: looks at what the watches know, and serves it to whom the API server admits.

Leader or not: every controller watches everything. A row is made again only when what it is made from has changed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from aiohttp import web

from cache_agent.api.kube.kube_client import KubeClient
from cache_agent.api.kube.token_reviews import CallerReview
from cache_agent.api.node_cache import NodeCache
from cache_agent.api.page.guard import refusal_of_review
from cache_agent.api.page.node_rows import node_rows
from cache_agent.api.page.page_server import EVENTS, HEADERS, PageServer
from cache_agent.api.page.view import NodeRows, Row, View, compose
from modelimage.tcp_listener import listen_tcp
from workspace.controller.cached_model_controller import CacheRunner
from workspace.controller.log_events import about
from workspace.controller.object_cache import Key
from workspace.controller.page_rows import workspace_problem, workspace_row
from workspace.controller.runner import Runner

Json = dict[str, Any]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

logger = logging.getLogger(__name__)

_SHUTDOWN_SECONDS: Final = 1.0


@dataclass(slots=True)
class ClusterLook:
    """Makes the page's view from a controller's caches."""

    runner: Runner
    caching: CacheRunner
    leads: Callable[[], bool]
    _nodes: dict[str, tuple[NodeCache, NodeRows]] = field(default_factory=dict)
    _workspaces: dict[Key, tuple[tuple[object, ...], Row]] = field(default_factory=dict)

    async def __call__(self) -> View:
        """The view of now."""
        caches = self.caching.view.caches
        for gone in self._nodes.keys() - caches.keys():
            del self._nodes[gone]
        nodes = [self._node(name, view.cache) for name, view in sorted(caches.items())]
        cache = self.runner.cache
        keys = cache.workspaces()
        for key in self._workspaces.keys() - set(keys):
            del self._workspaces[key]
        rows = {f"{key[0]}/{key[1]}": self._workspace(key) for key in keys}
        problems = [found for row in rows.values() if (found := workspace_problem(row))]
        about = {"kind": "cluster", "name": "cluster", "leads": self.leads()}
        return compose(about, nodes, rows, problems)

    def _node(self, name: str, cache: NodeCache) -> NodeRows:
        known = self._nodes.get(name)
        # The same object: a NodeCache is parsed anew at each change.
        if known is None or known[0] is not cache:
            known = self._nodes[name] = cache, node_rows(cache)
        return known[1]

    def _workspace(self, key: Key) -> Row:
        cache = self.runner.cache
        load = _load(self.runner, key)
        stamp: tuple[object, ...] = (*cache.stamp(key), *sorted(load.items()))
        known = self._workspaces.get(key)
        if known is None or known[0] != stamp:
            objects = cache.objects(key)
            document = cache.workspace(key) or {"metadata": {"namespace": key[0], "name": key[1]}}
            row = workspace_row(document, objects, cache.mounts(objects), dict(load))
            known = self._workspaces[key] = stamp, row
        return known[1]


def _load(runner: Runner, key: Key) -> Mapping[str, int]:
    """The requests of a Workspace's servers, where the leader scales it and so measures them."""
    load = runner.loads.get(key)
    if load is None:
        return {}
    return {
        "running": int(sum(each.running for each in load.readings)),
        "waiting": int(load.waiting),
    }


def reviewing(app: web.Application, review: CallerReview) -> web.Application:
    """Admits to the page's events only those whose bearer token the cluster lets read them."""

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path != EVENTS:
            return await handler(request)
        refused = await refusal_of_review(review, request)
        if refused is None:
            return await handler(request)
        status, reason = refused
        return web.json_response({"error": reason}, status=status, headers=HEADERS)

    app.middlewares.append(guard)
    return app


async def _to_page(_: web.Request) -> web.Response:
    raise web.HTTPFound("page/", headers=HEADERS)


@asynccontextmanager
async def serving_page(
    look: Callable[[], Awaitable[View]], client: KubeClient, *, host: str, port: int
) -> AsyncIterator[int]:
    """Serves the page for the duration of the context; yields the port. Raises Busy when the address is taken."""
    page = PageServer(look)
    app = reviewing(web.Application(), CallerReview(client, time.monotonic))
    app.add_routes([web.get("/", _to_page), *page.routes()])
    runner = web.AppRunner(
        app, access_log=None, handler_cancellation=True, auto_decompress=False,
        shutdown_timeout=_SHUTDOWN_SECONDS,
    )  # fmt: skip
    await runner.setup()
    try:
        await web.SockSite(runner, listen_tcp(host, port, option="another --page")).start()
        found = int(runner.addresses[0][1])
        logger.info("page on %s:%d", host, found, extra=about("page served"))
        async with page.looking():
            yield found
    finally:
        await runner.cleanup()
