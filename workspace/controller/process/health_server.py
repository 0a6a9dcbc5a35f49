"""Liveness, readiness and metrics of a controller over HTTP, for the kubelet and Prometheus.

Served from the event loop that does the work, so that an answer means that it isn't stuck.

Ready means that the API server was reached recently and that all watches work, leader or not: a standby that couldn't
take over isn't ready.
Independent of Workspaces.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from aiohttp import web

from modelimage.tcp_listener import listen_tcp

SILENCE_SECONDS: Final = 60.0
NOT_LISTED: Final = "it has not been listed yet"


class Liveness:
    """Whether the API server answers and every watch works. Updated by leader election and the watches."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last: float | None = None
        self._failing: dict[str, tuple[str, float]] = {}  # by kind: the problem, and since when
        self.leads = False

    def beat(self, *, leads: bool) -> None:
        """Records that the API server just responded."""
        self._last, self.leads = self._clock(), leads

    def watching(self, kind: str, problem: str | None) -> None:
        """Records that the watch of a kind works, or its problem."""
        if problem is None:
            self._failing.pop(kind, None)
        else:
            _, since = self._failing.get(kind, (problem, self._clock()))
            self._failing[kind] = problem, since

    @property
    def failing(self) -> int:
        """How many kinds of objects can't be watched."""
        return len(self._failing)

    def problem(self) -> str | None:
        """The reason why the controller isn't ready; None when it is."""
        if self._last is None:
            # Leadership is sought when all kinds are listed, so one that can't be is the reason.
            for kind, (problem, _) in self._failing.items():
                if problem != NOT_LISTED:
                    return f"{kind} can't be watched: {problem}"
            return "the API server has not answered yet"
        silent = self._clock() - self._last
        if silent > SILENCE_SECONDS:
            return f"no answer of the API server for {silent:.0f} s"
        for kind, (problem, since) in self._failing.items():
            # A watch that breaks is resumed within seconds; readiness must not flap meanwhile.
            if problem == NOT_LISTED or self._clock() - since > SILENCE_SECONDS:
                return f"{kind} can't be watched: {problem}"
        return None


# By a scraper's Accept header: the page and its content type.
MetricsPage = Callable[[str], tuple[bytes, str]]


def _no_metrics(_accept: str) -> tuple[bytes, str]:
    return b"", "text/plain"


def application(liveness: Liveness, metrics: MetricsPage = _no_metrics) -> web.Application:
    """`GET /livez`, `/readyz` and `/metrics`; `/readyz` returns 503 with the problem."""

    async def livez(request: web.Request) -> web.Response:
        return web.json_response({"status": "alive"})

    async def readyz(request: web.Request) -> web.Response:
        problem = liveness.problem()
        document = {"ready": problem is None, "leads": liveness.leads, "problem": problem}
        return web.json_response(document, status=200 if problem is None else 503)

    async def metrics_text(request: web.Request) -> web.Response:
        page, content_type = metrics(request.headers.get("Accept", ""))
        return web.Response(body=page, headers={"Content-Type": content_type})

    app = web.Application()
    app.add_routes(
        [web.get("/livez", livez), web.get("/readyz", readyz), web.get("/metrics", metrics_text)]
    )
    return app


@asynccontextmanager
async def answering(
    liveness: Liveness, *, host: str, port: int, metrics: MetricsPage = _no_metrics
) -> AsyncIterator[int]:
    """Serves for the duration of the context; yields the port. Raises Busy when the address is taken."""
    runner = web.AppRunner(application(liveness, metrics), access_log=None)
    await runner.setup()
    try:
        await web.SockSite(runner, listen_tcp(host, port, option="another --health")).start()
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()
