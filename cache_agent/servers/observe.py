"""Liveness, readiness and metrics over HTTP. Read-only.

The control socket serves the same routes. They can also have an address of their own, because the kubelet and
Prometheus can't reach a unix socket.
"""

from __future__ import annotations

import threading

from aiohttp import web

from cache_agent.node.health import Health
from cache_agent.node.metrics import Metrics
from cache_agent.node.threads import BlockingExecutor


def start_thread() -> None:
    """Start a thread that does nothing. Raises RuntimeError when the system allows no more."""
    thread = threading.Thread(target=lambda: None, name="livez")
    thread.start()
    thread.join()


class ObserveApi:
    """`GET /livez`, `/readyz` (503 with the failed checks), `/metrics` and `/metrics/detail` of one agent."""

    def __init__(self, executor: BlockingExecutor, health: Health, metrics: Metrics) -> None:
        self._executor, self._health, self._metrics = executor, health, metrics

    def routes(self) -> list[web.RouteDef]:
        """The routes, for an application that serves other routes too."""
        return [
            web.get("/livez", self._livez),
            web.get("/readyz", self._readyz),
            web.get("/metrics", self._metrics_text),
            web.get("/metrics/detail", self._detail_text),
        ]

    def application(self) -> web.Application:
        """An application that serves only these routes."""
        app = web.Application()
        app.add_routes(self.routes())
        return app

    async def _livez(self, request: web.Request) -> web.Response:
        # In a thread, and with a new one: an agent that can start none serves and pulls nothing.
        try:
            await self._executor.call(start_thread)
        except RuntimeError as error:
            return web.json_response({"status": "stuck", "problem": str(error)}, status=503)
        return web.json_response({"status": "alive"})

    async def _readyz(self, request: web.Request) -> web.Response:
        checks = await self._executor.call(self._health.checks)
        ready = all(problem is None for problem in checks.values())
        document = {"ready": ready, "checks": {name: p or "ok" for name, p in checks.items()}}
        return web.json_response(document, status=200 if ready else 503)

    async def _metrics_text(self, request: web.Request) -> web.Response:
        accept = request.headers.get("Accept", "")
        data, content_type = await self._executor.call(lambda: self._metrics.exposition(accept))
        return web.Response(body=data, headers={"Content-Type": content_type})

    async def _detail_text(self, request: web.Request) -> web.Response:
        data, content_type = await self._executor.call(self._metrics.detail_exposition)
        return web.Response(body=data, headers={"Content-Type": content_type})
