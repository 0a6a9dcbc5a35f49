"""Replicas as processes: starts and drains them as the scaler says, behind an activator, with a bounded load.

What a Deployment, its pods' preStop hook and a Service do in a cluster is done here for processes of this machine; the
scraping, the scaler and the activator are the ones that run there.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from tests.servers.ports import free_port
from tests.servers.process import ServerProcess, child_environment
from workspace.activator.gate import QueueLimits
from workspace.activator.proxy import Activator, ProxyOptions, serve
from workspace.controller.loops.scaling_loop import Scaler, ScrapedServer, Targets, read_load
from workspace.scaler import Load, Policy

Command = Callable[[int], Sequence[str]]  # of a port


@dataclass
class Replica:
    process: ServerProcess
    url: str
    ready: bool = False
    leaving: bool = False


@dataclass
class Fleet:
    """`command` starts one server; `environment` is added to its small one. `counts` are the numbers of replicas.

    The scaler's clock counts rounds, `period` seconds each: on a busy machine, where a round takes longer and so does
    everything else, its windows hold as many readings as on an idle one.
    """

    command: Command
    policy: Policy
    home: Path
    environment: dict[str, str] = field(default_factory=dict)
    period: float = 0.2
    replicas: list[Replica] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    _started: int = 0

    def serving(self) -> list[str]:
        """What a Service would name: the ready replicas."""
        return [each.url for each in self.replicas if each.ready]

    async def scale(self, session: aiohttp.ClientSession, activator: str) -> None:
        """The scaler's loop, until cancelled."""
        scaler = Scaler(self.policy)
        for number in itertools.count():
            await self._probe(session)
            targets = Targets(
                len(self.replicas),
                tuple(ScrapedServer(url, url) for url in self.serving()),
                activator,
            )
            answer = scaler.step((await read_load(session, targets))[0], number * self.period)
            while len(self.replicas) < answer.replicas:
                self._start()
            while len(self.replicas) > answer.replicas:
                await self._drain(session)
            if not self.counts or self.counts[-1] != len(self.replicas):
                self.counts.append(len(self.replicas))
            await asyncio.sleep(self.period)

    def _start(self) -> None:
        port, self._started = free_port(), self._started + 1
        home = self.home / str(self._started)
        home.mkdir()
        environment = child_environment(home, **self.environment)
        process = ServerProcess(self.command(port), log=home / "log", environment=environment)
        self.replicas.append(Replica(process, f"http://127.0.0.1:{port}"))

    async def _drain(self, session: aiohttp.ClientSession) -> None:
        """Take the least busy replica out, let it finish, stop it: what preStop does in a pod."""
        loads = [await self._load_of(session, each) for each in self.replicas]
        index = min(range(len(loads)), key=lambda i: loads[i].running + loads[i].waiting)
        replica = self.replicas[index]
        replica.ready, replica.leaving = False, True
        busy = True
        while busy:
            await asyncio.sleep(self.period)  # requests on their way to it arrive first
            found = await self._load_of(session, replica)
            busy = bool(found.running + found.waiting)
        await asyncio.to_thread(replica.process.stop)
        self.replicas.remove(replica)

    async def _load_of(self, session: aiohttp.ClientSession, replica: Replica) -> Load:
        found, _ = await read_load(
            session, Targets(1, (ScrapedServer(replica.url, replica.url),), None)
        )
        return found

    async def _probe(self, session: aiohttp.ClientSession) -> None:
        """Readiness of those that aren't ready yet. A dead process is an error of the test."""
        for replica in self.replicas:
            if not replica.process.is_running():
                raise AssertionError(f"a replica died:\n{replica.process.log_text()[-3000:]}")
            if not replica.ready and not replica.leaving:
                with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                    timeout = aiohttp.ClientTimeout(total=1)
                    async with session.get(f"{replica.url}/health", timeout=timeout) as answer:
                        replica.ready = answer.status == 200

    def stop(self) -> None:
        for replica in self.replicas:
            replica.process.stop()


@contextlib.asynccontextmanager
async def running(fleet: Fleet) -> AsyncIterator[tuple[aiohttp.ClientSession, str]]:
    """A fleet that scales itself, a session, and the address that clients use."""
    activator = Activator(
        ProxyOptions(fleet.serving, limits=QueueLimits(timeout=86400, interval=0.1))
    )
    port = asyncio.get_running_loop().create_future()
    timeout = aiohttp.ClientTimeout(total=None)
    connector = aiohttp.TCPConnector(limit=0)
    try:
        # In a group: when the scaler ends with an error, the test ends with it at once.
        async with (
            aiohttp.ClientSession(timeout=timeout, connector=connector) as session,
            asyncio.TaskGroup() as group,
        ):
            server = serve(activator, host="127.0.0.1", port=0, ready=port.set_result)
            tasks = [group.create_task(server)]
            base = f"http://127.0.0.1:{await port}"
            tasks.append(group.create_task(fleet.scale(session, base)))
            try:
                yield session, base
            finally:
                for task in tasks:
                    task.cancel()
    finally:
        await asyncio.to_thread(fleet.stop)


async def load(
    session: aiohttp.ClientSession,
    url: str,
    body: dict[str, object],
    *,
    clients: int,
    requests: int,
    enough: Callable[[], bool] = lambda: False,
) -> list[int]:
    """The statuses of so many requests by so many clients at once, or fewer: as soon as it is enough, none is begun."""
    left = itertools.takewhile(lambda _: not enough(), range(requests))

    async def client() -> list[int]:
        statuses = []
        for _ in left:
            async with session.post(f"{url}/v1/completions", json=body) as answer:
                await answer.read()
                statuses.append(answer.status)
        return statuses

    found = await asyncio.gather(*(client() for _ in range(clients)))
    return [status for each in found for status in each]
