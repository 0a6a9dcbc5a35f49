"""The faces that pods and runtimes talk to: which of them an agent opens, and where. Part of the composition root.

They are apart from the control API: other sockets, other threads, and nothing behind them changes the node's state.
"""

from __future__ import annotations

import socket
from contextlib import AsyncExitStack
from dataclasses import dataclass, fields

from aiohttp import web

from cache_agent.access.gate import Gate
from cache_agent.access.registries import AllowedRegistries
from cache_agent.access.upstream import Upstream, impatient
from cache_agent.addresses import Address
from cache_agent.config import FacesSection
from cache_agent.faces.bridge import Bridge
from cache_agent.faces.mirror.api import MirrorApi
from cache_agent.faces.mirror.service import MirrorService
from cache_agent.node import Node
from modelimage.access import Access
from modelimage.errors import Busy

_BACKLOG = 1024
_THREADS = 16
SHUTDOWN_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class FaceOptions:
    """Which faces to open. `registries` are those that tenants may name; none means the well-known public ones."""

    mirror: Address | None = None
    registries: tuple[str, ...] = ()

    @classmethod
    def of(cls, section: FacesSection) -> FaceOptions:
        """What the settings say."""
        mirror = Address.parse(section.mirror) if section.mirror else None
        return cls(mirror, section.registries)


@dataclass(frozen=True, slots=True)
class OpenFaces:
    """Where the faces answer."""

    mirror: Address | None = None

    def named(self) -> dict[str, str]:
        """Those that are open, by name."""
        every = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: str(at) for name, at in every.items() if at is not None}


async def open_faces(
    node: Node, access: Access, options: FaceOptions, stack: AsyncExitStack
) -> OpenFaces:
    """Open them until the stack is left. Raises Busy for an address that is taken."""
    allowed = AllowedRegistries.of(options.registries)
    questions, transfers = Upstream(impatient(access), allowed), Upstream(access, allowed)
    gate = Gate(node.clock, places=node.shelf)
    mirror = None
    if options.mirror is not None:
        bridge = Bridge(_THREADS)
        stack.callback(bridge.close)
        api = MirrorApi(MirrorService(node, gate, questions, transfers), bridge)
        mirror = await _serve(stack, api.application(), options.mirror)
    return OpenFaces(mirror)


async def _serve(stack: AsyncExitStack, app: web.Application, address: Address) -> Address:
    runner = web.AppRunner(
        app, handler_cancellation=True, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS
    )
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    server = _listen(address)
    await web.SockSite(runner, server, backlog=_BACKLOG).start()
    return Address(address.host, int(server.getsockname()[1]))


def _listen(address: Address) -> socket.socket:
    try:
        server = socket.create_server(
            (address.host, address.port),
            family=socket.AF_INET6 if ":" in address.host else socket.AF_INET,
            backlog=_BACKLOG,
        )
    except OSError as error:
        raise Busy(
            f"can't listen on {address}: {error.strerror or error}", hint="Choose another port."
        ) from error
    server.setblocking(False)
    return server
