"""Limits for the activator's connections: how many there are, and how long one may say nothing.

Without them, connections that send no request take all descriptors of the process. Must know nothing of requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final
from weakref import WeakKeyDictionary, WeakSet

from aiohttp import web

# An idle connection takes about 40 KB of the container's 128 MiB.
MOST_CONNECTIONS: Final = 1024
# From the connection to the head of its first request. Between requests aiohttp has a limit of its own.
FIRST_REQUEST_SECONDS: Final = 30.0
_LOOKS: Final = 30  # at all connections, within the time that one may say nothing

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class _Refused(asyncio.Protocol):
    """Closes a connection at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


@dataclass
class ConnectionGuard:
    """Makes the protocols of one server's connections; `most` at a time, others are closed."""

    most: int = MOST_CONNECTIONS
    seconds: float = FIRST_REQUEST_SECONDS
    # Weak, and without timers: clients may open and close any number of connections, of which nothing may stay.
    _spoke: WeakSet[asyncio.BaseTransport] = field(default_factory=WeakSet)
    _silent_since: WeakKeyDictionary[asyncio.BaseTransport, float] = field(
        default_factory=WeakKeyDictionary
    )

    def watching(self, app: web.Application) -> web.Application:
        """Add a middleware that notes which connections sent a request."""

        @web.middleware
        async def note(request: web.Request, handler: Handler) -> web.StreamResponse:
            if request.transport is not None:
                self._spoke.add(request.transport)
            return await handler(request)

        app.middlewares.insert(0, note)
        return app

    def make(self, server: web.Server) -> asyncio.Protocol:
        """The protocol of a new connection."""
        return _Refused() if len(server.connections) >= self.most else server()

    async def watch(self, server: web.Server) -> None:
        """End a server's silent connections, until cancelled."""
        while True:
            await asyncio.sleep(self.seconds / _LOOKS)
            self._look(server)

    def _look(self, server: web.Server) -> None:
        now = asyncio.get_running_loop().time()
        for protocol in server.connections:
            transport = protocol.transport
            if transport is None or transport in self._spoke:
                continue
            # At its first look a connection is at most one interval old.
            since = self._silent_since.setdefault(transport, now - self.seconds / _LOOKS)
            if now - since >= self.seconds:
                # Not `close`, which waits for a client to take what is still buffered.
                transport.abort()

    def watched(self) -> int:
        """How many connections are known: at most those that are open."""
        return len(self._spoke | set(self._silent_since))
