"""Limits for the activator's connections: how many there are, and how long one may say nothing.

Without them, connections that send no request take all descriptors of the process. Must know nothing of requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from aiohttp import web

# An idle connection takes about 40 KB of the container's 128 MiB.
MOST_CONNECTIONS: Final = 1024
# From the connection to the head of its first request. Between requests aiohttp has a limit of its own.
FIRST_REQUEST_SECONDS: Final = 30.0

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
    # Those that sent no request yet, each until it is looked at.
    _silent: set[asyncio.BaseProtocol] = field(default_factory=set)

    def watching(self, app: web.Application) -> web.Application:
        """Add a middleware that notes which connections sent a request."""

        @web.middleware
        async def note(request: web.Request, handler: Handler) -> web.StreamResponse:
            self._silent.discard(request.protocol)
            return await handler(request)

        app.middlewares.insert(0, note)
        return app

    def make(self, server: web.Server) -> asyncio.Protocol:
        """The protocol of a new connection."""
        if len(server.connections) >= self.most:
            return _Refused()
        protocol = server()
        self._silent.add(protocol)
        asyncio.get_running_loop().call_later(self.seconds, self._look, protocol)
        return protocol

    def _look(self, protocol: web.RequestHandler) -> None:
        if protocol in self._silent:
            self._silent.discard(protocol)
            if protocol.transport is not None:
                protocol.transport.abort()
