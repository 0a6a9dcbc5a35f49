"""The activator's HTTP proxy: streams requests and responses through once the queue admits them.

A request's body is read (up to a limit) before the request waits, since a server takes minutes to start and a client's
connection may not last that long. A connection that fails before the server accepted the request is retried; later
failures never are.
"""

from __future__ import annotations

import asyncio
import io
import itertools
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Final

import aiohttp
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from modelimage import spans, trace_headers
from modelimage.errors import Busy, TimedOut
from modelimage.tcp_listener import listen_tcp
from workspace.activator.bodies import Bodies, Share, TooLarge
from workspace.activator.connection_guard import ConnectionGuard
from workspace.activator.gate import QueueLimits, RequestQueue
from workspace.activator.metrics import ActivatorMetrics

PREFIX: Final = "/activator"
# RFC 9110, section 7.6.1. The last two are set anew, by the address and the body that are sent.
_HOP_BY_HOP: Final = frozenset(
    {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer",
     "transfer-encoding", "upgrade", "host", "content-length"}
)  # fmt: skip
_LONGEST_PATH: Final = 200  # characters of it in a span
# Requests under way for each that may wait: those that are being answered need no place in the queue.
_REQUESTS_PER_PLACE: Final = 2


@dataclass(frozen=True, slots=True)
class ProxyOptions:
    """`upstreams` returns the servers' addresses; `health_path` returns 200 on a ready server.

    `max_body` and `all_bodies` are bytes held for one request and for all together, which the container's memory limit
    allows beside the process itself; `body_seconds`: how long a client may take to send a body.
    """

    upstreams: Callable[[], Sequence[str]]
    health_path: str = "/health"
    limits: QueueLimits = field(default_factory=QueueLimits)
    max_body: int = 16 << 20
    all_bodies: int = 32 << 20
    body_seconds: float = 120.0


class Activator:
    """One Workspace's activator."""

    def __init__(self, options: ProxyOptions) -> None:
        self._options = options
        self.gate = RequestQueue(self._ready_upstream, options.limits)
        self._in_flight: dict[str, int] = {}
        self._turn = itertools.count()
        self._session: aiohttp.ClientSession | None = None
        self._bodies = Bodies(
            each=options.max_body, total=options.all_bodies, seconds=options.body_seconds
        )
        self._requests = 0
        self._waiting: dict[str, None] = {}  # traces of requests that wait, the oldest first
        self._metrics = ActivatorMetrics(self.gate)

    def app(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(client_max_size=self._options.max_body)
        app.router.add_get(f"{PREFIX}/health", self._health)
        app.router.add_get(f"{PREFIX}/metrics", self._metrics_page)
        app.router.add_route("*", "/{path:.*}", self._proxy)
        app.cleanup_ctx.append(self._lifetime)
        return app

    async def _lifetime(self, _: web.Application) -> AsyncIterator[None]:
        # No total timeout: a generation may stream for as long as it takes.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
        # The servers' queues limit concurrency, not this pool.
        connector = aiohttp.TCPConnector(limit=0)
        # Bodies pass through unchanged, compressed or not.
        self._session = aiohttp.ClientSession(
            timeout=timeout, connector=connector, auto_decompress=False
        )
        yield
        # In this order: until it is closed, the gate asks servers by this session.
        await self.gate.close()
        await self._session.close()

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _metrics_page(self, request: web.Request) -> web.Response:
        # By the trace of the request that waits longest the scaler's work becomes part of what it is done for.
        waking = next(iter(self._waiting), "")
        headers = {trace_headers.TRACEPARENT: waking} if waking else {}
        page, headers["Content-Type"] = self._metrics.page(request.headers.get("Accept", ""))
        return web.Response(body=page, headers=headers)

    async def _proxy(self, request: web.Request) -> web.StreamResponse:
        self._metrics.entered.inc()
        # Also those whose bodies still arrive: each takes memory, though it doesn't wait in the queue yet.
        if self._requests >= _REQUESTS_PER_PLACE * self._options.limits.capacity:
            return self._come_back(Busy("too many requests are under way"))
        self._requests += 1
        try:
            with self._bodies.share() as share, _request_span(request):
                answer = await self._held(request, share)
                spans.note(status=answer.status)
                return answer
        finally:
            self._requests -= 1

    async def _held(self, request: web.Request, share: Share) -> web.StreamResponse:
        try:
            chunks = request.content.iter_any()
            body = await self._bodies.read(chunks, share, length=request.content_length)
        except TooLarge as error:
            return web.json_response(_problem(error.message), status=413)
        except TimedOut as error:
            return web.json_response(_problem(error.message), status=408)
        except Busy as error:
            return self._come_back(error)
        while True:
            try:
                with spans.span("wait for a server"):
                    upstream = await self._upstream()
                with spans.span("forward"):
                    return await self._forward(request, upstream, body)
            except _NotTaken:
                continue  # the server hasn't read the request, so another may serve it
            except (Busy, TimedOut) as error:
                return self._come_back(error)

    async def _upstream(self) -> str:
        """The address of a ready server, waited for. Raises what the queue raises."""
        waiting, began = spans.traceparent(), time.monotonic()
        if waiting:
            self._waiting[waiting] = None
        try:
            async with self.gate.enter() as upstream:
                self._metrics.passed(time.monotonic() - began)
                return upstream
        finally:
            self._waiting.pop(waiting, None)

    async def _forward(
        self, request: web.Request, upstream: str, body: bytes
    ) -> web.StreamResponse:
        self._in_flight[upstream] = self._in_flight.get(upstream, 0) + 1
        try:
            async with self._open(request, upstream, body) as answer:
                return await _relay(request, answer)
        # Only a failed connect is retried. Later errors may follow tokens that the client already
        # has.
        except aiohttp.ClientConnectorError as error:
            raise _NotTaken from error
        except aiohttp.ClientError as error:
            return web.json_response(
                _problem(f"the server's answer was interrupted: {error}"), status=502
            )
        finally:
            self._in_flight[upstream] -= 1
            if not self._in_flight[upstream]:
                del self._in_flight[upstream]  # servers come and go

    def _open(
        self, request: web.Request, upstream: str, body: bytes
    ) -> aiohttp.client._RequestContextManager:
        if self._session is None:
            raise RuntimeError("the application isn't started")
        return self._session.request(
            request.method,
            # As the client wrote it: a path that is decoded and quoted again may be another path.
            URL(upstream + request.path_qs, encoded=True),
            headers=_with_trace(request.headers),
            # As a file, which aiohttp sends in pieces; it warns of large bytes, which it writes in one.
            data=io.BytesIO(body) if body else None,
            # aiohttp adds these where the client sent none, and servers act on them.
            skip_auto_headers=("User-Agent", "Accept-Encoding", "Content-Type"),
            # A redirect is the client's to follow.
            allow_redirects=False,
        )

    async def _ready_upstream(self) -> str | None:
        """The ready server with the fewest of our requests, round robin among equals; None when none is ready."""
        addresses = list(self._options.upstreams())
        start = next(self._turn) % max(1, len(addresses))
        in_turn = addresses[start:] + addresses[:start]
        for address in sorted(in_turn, key=lambda each: self._in_flight.get(each, 0)):
            if await self._answers(address + self._options.health_path):
                return address
        return None

    async def _answers(self, url: str) -> bool:
        if self._session is None:
            return False
        try:
            timeout = aiohttp.ClientTimeout(total=2)
            async with self._session.get(url, timeout=timeout) as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    def _come_back(self, error: Busy | TimedOut) -> web.Response:
        self._metrics.refused.inc()
        headers = {"Retry-After": str(self._options.limits.retry_after)}
        return web.json_response(_problem(error.message), status=503, headers=headers)


class _NotTaken(Exception):
    """The server went away before it accepted the request."""


async def _relay(request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
    """Forwards a response as it arrives: streamed tokens must not be batched."""
    response = web.StreamResponse(status=answer.status, headers=_end_to_end(answer.headers))
    # Dropped above with the headers of one connection. Without it the client
    # gets chunks, and learns no length.
    if "Content-Length" in answer.headers:
        response.content_length = answer.content_length
    await response.prepare(request)
    async for chunk in answer.content.iter_any():
        await response.write(chunk)
    await response.write_eof()
    return response


def _came_from(headers: CIMultiDictProxy[str]) -> trace_headers.SpanOrigin:
    """The trace that a request is part of: what clients send of it is bounded, and ignored if it can't be one."""
    return trace_headers.passed_on(
        headers.getall(trace_headers.TRACEPARENT, ()), headers.getall(trace_headers.TRACESTATE, ())
    )


def _request_span(request: web.Request) -> AbstractContextManager[None]:
    """The span of a request, in its client's trace if it has one. The path alone: queries may hold keys."""
    return spans.span(
        "request", _came_from(request.headers), method=request.method, path=request.path[:_LONGEST_PATH]
    )  # fmt: skip


def _with_trace(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    """A request's headers for the server, which continues our span, or the client's where we have none."""
    found, origin = _end_to_end(headers), _came_from(headers)
    given = {trace_headers.TRACEPARENT: origin.parent, trace_headers.TRACESTATE: origin.state}
    for name, value in (given | spans.headers()).items():
        found.popall(name, None)
        if value:
            found[name] = value
    return found


def _end_to_end(headers: Mapping[str, str]) -> CIMultiDict[str]:
    return CIMultiDict(
        (name, value) for name, value in headers.items() if name.lower() not in _HOP_BY_HOP
    )


def _problem(message: str) -> dict[str, dict[str, str]]:
    """An error in the format of OpenAI's API."""
    return {"error": {"message": message, "type": "service_unavailable"}}


async def serve(
    activator: Activator,
    *,
    host: str,
    port: int,
    ready: Callable[[int], None] = lambda _: None,
    guard: ConnectionGuard | None = None,
) -> None:
    """Serves until cancelled; running requests get a minute to finish. `ready` is called with the port."""
    limited = guard or ConnectionGuard()
    # Cancels a handler when its client disconnects: it must not count as waiting.
    runner = web.AppRunner(
        limited.watching(activator.app()),
        access_log=None,
        shutdown_timeout=60,
        handler_cancellation=True,
        # Bodies pass through unchanged. Decoded here, 64 KiB of a compressed one could become 64 MiB.
        auto_decompress=False,
    )
    await runner.setup()
    try:
        server = runner.server
        if server is None:
            raise RuntimeError("a runner that was set up has a server")
        # Not web.SockSite, which has no limit of connections.
        listening = await asyncio.get_running_loop().create_server(
            lambda: limited.make(server), sock=listen_tcp(host, port, option="another --listen")
        )
        try:
            ready(listening.sockets[0].getsockname()[1])
            await limited.watch(server)
        finally:
            # Not its context, which waits for connections that only the clean-up below closes.
            listening.close()
    finally:
        await runner.cleanup()
