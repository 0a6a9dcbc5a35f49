"""A node with its servers open in this process: the servers' event loop runs in a thread, as the agent's does."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Self

from cache_agent.daemon.node_setup import NodeOptions, NodeParts, open_node
from cache_agent.daemon.servers import RunningServers, ServerOptions, open_servers
from cache_agent.fetch.engine import EngineOptions
from cache_agent.fetch.values import PullRequest, PullResult
from cache_agent.leases.holders import Machine
from cache_agent.net.listen_addresses import Address
from cache_agent.servers.csi.pod_events import PodEvent, PodEvents
from modelimage.access import Access
from modelimage.reference import parse_image
from modelimage.registry.connections import Connections
from modelimage.registry.network_options import Timeouts
from modelimage.registry.retry import RetryPolicy
from tests.cache_agent.nodes import ROOMY

ANY = Address("127.0.0.1", 0)
HOUR = 3600.0


def loopback_access() -> Access:
    """Anonymous, without repetition, so that a stopped registry is found out at once; a busy one takes its time."""
    timeouts = Timeouts(connect=HOUR, stall=HOUR, finish=HOUR)
    return Access(connections=Connections(policy=RetryPolicy(attempts=1), timeouts=timeouts))


class CollectedEvents(PodEvents):
    """Keeps the Events that the CSI driver wants to be written."""

    def __init__(self) -> None:
        super().__init__(time.time, lambda *_, **__: None)
        self.told: list[PodEvent] = []

    def tell(self, event: PodEvent) -> None:
        self.told.append(event)


class ServersInProcess:
    """Opens a node at `root` and its servers; `servers` says where they answer."""

    def __init__(
        self,
        root: Path,
        options: ServerOptions,
        access: Access | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._root, self._options, self._clock = root, options, clock
        self._access = access or loopback_access()
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._failed: BaseException | None = None
        self.servers = RunningServers()
        self.pod_events = CollectedEvents()

    def __enter__(self) -> Self:
        csi = self._options.csi
        machine = Machine(kubelet=csi.kubelet) if csi else Machine()
        parts = replace(NodeParts.real(self._access), clock=self._clock, machine=machine)
        engine = EngineOptions(stall_seconds=HOUR)
        self.node = open_node(NodeOptions(self._root, ROOMY, engine), parts)
        self._thread = threading.Thread(target=self._main)
        self._thread.start()
        self._ready.wait()
        if self._failed is not None:
            self.__exit__()
            raise self._failed
        return self

    def __exit__(self, *_: object) -> None:
        if self._loop is not None and self._stop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self.node.close()

    @property
    def mirror(self) -> str:
        """HOST:PORT of the mirror."""
        assert self.servers.mirror is not None
        return str(self.servers.mirror)

    def pull(self, image: str, variant: str | None = None) -> PullResult:
        """Pull with the node's own access and wait."""
        result = self.node.pull(PullRequest(parse_image(image), variant)).result()
        assert result is not None
        return result

    def _main(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - raised again where the test waits
            self._failed = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with AsyncExitStack() as stack:
            self.servers = await open_servers(
                self.node, self._access, self._options, stack, pod_events=self.pod_events
            )
            self._ready.set()
            await self._stop.wait()
