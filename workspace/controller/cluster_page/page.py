"""The controller's page: looks at what the watches know, and serves it to whom the API server admits.

Leader or not: every controller watches everything. A row is made again only when what it is made from has changed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Set
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Generic, TypeVar

from aiohttp import web

from cache_agent.api.kube.kube_client import KubeClient
from cache_agent.api.kube.token_reviews import CallerReview
from cache_agent.api.node_cache import NodeCache
from cache_agent.api.page.guard import refusal_of_review
from cache_agent.api.page.node_rows import known_names, node_brief, node_rows, unknown_names
from cache_agent.api.page.page_server import EVENTS, HEADERS, PageServer
from cache_agent.api.page.view import NodeRows, Row, View, compose, shown_nodes, shown_workspaces
from modelimage.tcp_listener import listen_tcp
from workspace.controller.cluster.object_cache import Key
from workspace.controller.cluster_page.page_rows import (
    workspace_brief,
    workspace_problem,
    workspace_row,
)
from workspace.controller.node_caches.cached_model_controller import CacheRunner
from workspace.controller.process.log_events import about
from workspace.controller.runner import Runner

K = TypeVar("K")
V = TypeVar("V")
Json = dict[str, Any]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

logger = logging.getLogger(__name__)

_SHUTDOWN_SECONDS: Final = 1.0


class _Made(Generic[K, V]):
    """Values that were made, by key, each with what it was made from: made again only when that has changed."""

    def __init__(self) -> None:
        self._values: dict[K, tuple[object, V]] = {}

    def of(self, key: K, source: object, make: Callable[[], V]) -> V:
        """The value of a key, made from `source`."""
        known = self._values.get(key)
        # Identity first: comparing values is the cost that is to be saved.
        if known is None or (known[0] is not source and known[0] != source):
            known = self._values[key] = source, make()
        return known[1]

    def keep(self, keys: Set[K]) -> None:
        """Forgets the others."""
        for gone in self._values.keys() - keys:
            del self._values[gone]


@dataclass(slots=True)
class ClusterLook:
    """Makes the page's view from a controller's caches. Whole rows are kept of what is shown alone."""

    runner: Runner
    caching: CacheRunner
    leads: Callable[[], bool]
    _briefs: _Made[str, NodeRows] = field(default_factory=_Made)
    _nodes: _Made[str, NodeRows] = field(default_factory=_Made)
    _workspaces: _Made[str, Row] = field(default_factory=_Made)
    _rows: _Made[str, Row] = field(default_factory=_Made)

    async def __call__(self) -> View:
        """The view of now."""
        caches = {name: view.cache for name, view in sorted(self.caching.view.caches.items())}
        nodes = self._node_rows(caches)
        # A node that has not begun with a model knows its name alone; one that isn't shown may know more.
        unknown = unknown_names(nodes)
        names = known_names(caches.values(), unknown) if unknown else {}
        rows = self._workspace_rows()
        problems = [found for row in rows.values() if (found := workspace_problem(row))]
        about = {"kind": "cluster", "name": "cluster", "leads": self.leads()}
        return compose(about, nodes, rows, problems, names=names)

    def _node_rows(self, caches: Mapping[str, NodeCache]) -> list[NodeRows]:
        """Whole rows of the nodes that are shown, and a brief of each other."""
        briefs = [
            self._briefs.of(name, cache, partial(node_brief, cache))
            for name, cache in caches.items()
        ]
        self._briefs.keep(caches.keys())
        shown = {each.name for each in shown_nodes(briefs)}
        self._nodes.keep(shown)
        return [
            self._nodes.of(each.name, caches[each.name], partial(node_rows, caches[each.name]))
            if each.name in shown
            else each
            for each in briefs
        ]

    def _workspace_rows(self) -> dict[str, Row]:
        """The same of Workspaces."""
        keys = {f"{space}/{name}": (space, name) for space, name in self.runner.cache.workspaces()}
        stamps = {name: self._stamp(key) for name, key in keys.items()}

        def row(name: str) -> Row:
            return self._rows.of(name, stamps[name], partial(self._row, keys[name]))

        briefs = {
            name: self._workspaces.of(name, stamp, lambda name=name: workspace_brief(row(name)))  # type: ignore[misc]
            for name, stamp in stamps.items()
        }
        self._workspaces.keep(keys.keys())
        shown = shown_workspaces(briefs)
        found = {name: row(name) if name in shown else brief for name, brief in briefs.items()}
        self._rows.keep(shown)
        return found

    def _stamp(self, key: Key) -> tuple[object, ...]:
        """Equal as long as a Workspace's row is."""
        return (*self.runner.cache.stamp(key), *sorted(_load(self.runner, key).items()))

    def _row(self, key: Key) -> Row:
        cache = self.runner.cache
        objects = cache.objects(key)
        document = cache.workspace(key) or {"metadata": {"namespace": key[0], "name": key[1]}}
        return workspace_row(
            document, objects, cache.mounts(objects), dict(_load(self.runner, key))
        )


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
        # The page itself has no content: all that it shows comes by its events.
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
    # Relative: proxies, kubectl's among them, serve the page below a path of their own.
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
        # A stream of events ends with its client, and not when the next one can't be written.
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
