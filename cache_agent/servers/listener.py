"""Listening sockets, with timeouts for idle and slow clients.

A connection on which no request begins for a while is closed, so clients that never finish a request can't exhaust
file descriptors. The kernel ends a connection whose peer stops reading, so it can't keep a model from eviction forever.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Final
from weakref import WeakKeyDictionary

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from cache_agent.net.listen_addresses import Address
from cache_agent.servers.accept_loop import CONTROL_LIMITS, Acceptor, ConnectionLimits
from modelimage.tcp_listener import listen_tcp

SHUTDOWN_SECONDS: Final = 5.0
IDLE_SECONDS: Final = 60.0
UNTAKEN_SECONDS: Final = 300.0
_BACKLOG: Final = 1024
_LOOKS: Final = 4  # at all connections, within the time that one may be idle
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class _Use:
    """How many of a connection's requests are running, and since when it is as it is now, in the loop's time."""

    running: int
    since: float


@dataclass
class IdleTimeout:
    """Closes connections on which no request began, ended or ran for `seconds`. For one application.

    `untaken`: seconds for which sent data may stay unacknowledged (TCP_USER_TIMEOUT).
    """

    seconds: float = IDLE_SECONDS
    untaken: float = UNTAKEN_SECONDS
    # Weak, and without timers: clients may open and close any number of connections, of which nothing may stay.
    _uses: WeakKeyDictionary[asyncio.BaseTransport, _Use] = field(default_factory=WeakKeyDictionary)

    def watching(self, app: web.Application) -> web.Application:
        """Add a middleware that notes requests; it comes first, so that refused requests count too."""

        @web.middleware
        async def note(request: web.Request, handler: Handler) -> web.StreamResponse:
            return await self._note(request, handler)

        app.middlewares.insert(0, note)
        return app

    async def watch(self, server: web.Server) -> None:
        """Close a server's idle connections, until cancelled."""
        while True:
            await asyncio.sleep(self.seconds / _LOOKS)
            now = asyncio.get_running_loop().time()
            for protocol in server.connections:
                transport = protocol.transport
                if transport is None or transport.is_closing():
                    continue
                use = self._use(transport)
                if not use.running and now - use.since >= self.seconds:
                    # Not `close`, which would wait until the peer has taken the buffered data.
                    transport.abort()

    def watched(self) -> int:
        """How many connections are known: at most those that are open."""
        return len(self._uses)

    def _use(self, transport: asyncio.BaseTransport) -> _Use:
        return self._uses.setdefault(transport, _Use(0, asyncio.get_running_loop().time()))

    async def _note(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.transport is None:
            return await handler(request)
        use, loop = self._use(request.transport), asyncio.get_running_loop()
        use.running += 1
        try:
            return await handler(request)
        finally:
            use.running -= 1
            use.since = loop.time()


async def serve(
    stack: AsyncExitStack,
    app: web.Application,
    address: Address,
    tls: ssl.SSLContext | None = None,
    idle: IdleTimeout | None = None,
    limits: ConnectionLimits | None = None,
    option: str = "another port",
) -> Address:
    """Serve at an address until the stack is left; return it with the real port.

    Raises Busy when it is taken; `option` is what chooses another one, for the hint.
    """
    watcher = idle or IdleTimeout()
    make = await _protocols(stack, app, watcher)
    listening = _listen(address, watcher.untaken, option)
    at = Address(address.host, int(listening.getsockname()[1]))
    # Not web.TCPSite, which has neither limits nor a hook for each new connection.
    Acceptor(listening, make, limits or ConnectionLimits.of_process(), tls).start(stack)
    return at


async def serve_control(
    stack: AsyncExitStack, app: web.Application, listening: Iterable[socket.socket]
) -> None:
    """Serve the control API at listening sockets until the stack is left."""
    make = await _protocols(stack, app, IdleTimeout())
    for each in listening:
        Acceptor(each, make, CONTROL_LIMITS).start(stack)


async def _protocols(
    stack: AsyncExitStack, app: web.Application, watcher: IdleTimeout
) -> Callable[[], RequestHandler]:
    """Set an application up until the stack is left; returns what makes the protocol of a new connection."""
    runner = web.AppRunner(
        watcher.watching(app),
        handler_cancellation=True,
        access_log=None,
        # Decoding could turn 64 KiB of a compressed body into 64 MiB; no client sends one.
        auto_decompress=False,
        shutdown_timeout=SHUTDOWN_SECONDS,
    )
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    server = runner.server
    if server is None:
        raise RuntimeError("a runner that was set up has a server")
    watching = asyncio.create_task(watcher.watch(server))

    async def stop() -> None:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)

    stack.push_async_callback(stop)
    return server


def _listen(address: Address, untaken: float, option: str) -> socket.socket:
    server = listen_tcp(address.host, address.port, option=option, backlog=_BACKLOG)
    # Set on the listening socket because accepted connections inherit it.
    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(untaken * 1000))
    server.setblocking(False)
    return server
