"""A node in this process that answers peers over real HTTP, and a client of it with a key of its own."""

from __future__ import annotations

import asyncio
import ssl
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from aiohttp import web

from cache_agent.node.node import Node
from cache_agent.node.threads import BlockingExecutor
from cache_agent.observability.events import Event, Events, PeerRequestRefused, PeerSent
from cache_agent.peers.announcements import FetchAnnouncements
from cache_agent.peers.chunk_watch import ChunkListPoller
from cache_agent.peers.peer_client import PeerClient, TlsFiles
from cache_agent.peers.peer_source import LocalPeer, PeerSource
from cache_agent.peers.rate import RateBaseline
from cache_agent.peers.reputation import Reputation
from cache_agent.peers.request_signatures import Key, Verifier
from cache_agent.peers.values import Member
from cache_agent.servers.peers.api import PeersApi
from cache_agent.servers.peers.servable_chunks import ServableChunks
from cache_agent.sources.throttle import Throttle

T = TypeVar("T")
KEY = Key(b"a key that the nodes of a test share")


@dataclass
class Told(Events):
    """What the server reported."""

    refused_for: list[str] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)

    def emit(self, event: Event) -> None:
        match event:
            case PeerRequestRefused(reason):
                self.refused_for.append(reason)
            case PeerSent(_, size):
                self.sent.append(size)


@dataclass
class Serving:
    """The peers' face of `node`. `name` is its address; `now` is the clock that signatures are checked by."""

    node: Node
    public: set[str]
    everything: bool = False
    tls: TlsFiles | None = None
    uploads: int = 4
    upload: float = 0.0
    slice_timeout: Callable[[int], float] = lambda size: 3600.0
    now: float = 1_800_000_000.0
    name: str = ""
    announcements: FetchAnnouncements = field(
        default_factory=lambda: FetchAnnouncements(lambda: 0.0)
    )
    told: Told = field(default_factory=Told)
    api: PeersApi = field(init=False)

    def client(self, key: Key = KEY, **options: object) -> PeerClient:
        """A peer that asks it."""
        given = {"tls": self.tls, "stall": 3600.0, **options}
        return PeerClient("asker:1", lambda: (key,), lambda: self.now, **given)  # type: ignore[arg-type]

    async def _start(
        self, context: ssl.SSLContext | None, executor: BlockingExecutor
    ) -> web.AppRunner:
        verifier = Verifier(lambda: (KEY,), _Names(self), lambda: self.now)
        offers = ServableChunks(
            self.node.store,
            self.node.downloads,
            self.announcements,
            self.everything,
            self.public.__contains__,
            lambda: "zone-a",
        )
        throttle = Throttle(self.upload, time.monotonic)
        self.api = PeersApi(
            offers, verifier, executor, self.told, throttle, self.uploads, self.slice_timeout
        )
        runner = web.AppRunner(
            self.api.application(), access_log=None, handler_cancellation=True, shutdown_timeout=1.0
        )
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        self.name = f"127.0.0.1:{runner.addresses[0][1]}"
        return runner


class _Names(frozenset[str]):
    """The name of a node whose port is chosen when it starts."""

    serving: Serving

    def __new__(cls, serving: Serving) -> _Names:
        made = super().__new__(cls)
        made.serving = serving
        return made

    def __contains__(self, name: object) -> bool:
        return name == self.serving.name


async def _end(runner: web.AppRunner) -> None:
    await runner.cleanup()
    for _ in range(5):  # connections that were closed end in the loop's next rounds
        await asyncio.sleep(0)


@contextmanager
def serving(node: Node, **options: object) -> Iterator[Serving]:
    """Serve until the context is left."""
    served = Serving(node, **options)  # type: ignore[arg-type]
    context = served.tls.server_context() if served.tls else None
    executor = BlockingExecutor(4)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="serving")
    thread.start()

    def call(task: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(task, loop).result()

    runner = call(served._start(context, executor))
    try:
        yield served
    finally:
        call(_end(runner))
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
        executor.close()


def peer_source(served: Serving) -> PeerSource:
    """That node as a source of another one's pulls."""
    client, reputation = served.client(), Reputation(lambda: 0.0)
    watching = ChunkListPoller(
        lambda: [Member(served.name)], client, reputation, Inline(), lambda: 0.0, 10.0
    )
    own = LocalPeer("asker:1")
    return PeerSource(
        own,
        FetchAnnouncements(lambda: 0.0),
        watching,
        client,
        reputation,
        RateBaseline(),
        lambda: 0.0,
    )


class Inline(Executor):
    """Runs what it is given at once."""

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*args, **kwargs))
        return future
