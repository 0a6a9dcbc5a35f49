"""Connections beyond the limits, descriptors and threads that run out: what is refused, and that the rest goes on."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest
from aiohttp import web

from cache_agent.fetch.values import PullRequest
from cache_agent.net.listen_addresses import Address
from cache_agent.net.sockets import listen
from cache_agent.node.threads import BlockingExecutor
from cache_agent.servers.accept_loop import ConnectionLimits
from cache_agent.servers.csi.mount_client import MounterClient
from cache_agent.servers.listener import serve
from cache_agent.servers.observe import ObserveApi
from modelimage.errors import Busy
from modelimage.reference import parse_image
from tests.cache_agent.nodes import NodeFactory
from tests.servers.process import child_environment

ROOT = Path(__file__).parents[3]


def application() -> web.Application:
    async def hello(request: web.Request) -> web.Response:
        return web.Response(text="hello")

    app = web.Application()
    app.router.add_get("/", hello)
    return app


class Client:
    """A connection that says nothing until it is asked to."""

    def __init__(self, streams: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
        self._reader, self._writer = streams

    @classmethod
    async def connect(cls, at: Address, source: str = "127.0.0.1") -> Client:
        return cls(await asyncio.open_connection(at.host, at.port, local_addr=(source, 0)))

    async def is_answered(self) -> bool:
        try:
            self._writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            return bool(await self._reader.read(1))
        except ConnectionError:
            return False

    async def close(self) -> None:
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()


async def answered(at: Address, count: int, source: str = "127.0.0.1") -> tuple[int, list[Client]]:
    """How many of so many connections, all kept open, get an answer."""
    clients = [await Client.connect(at, source) for _ in range(count)]
    return sum([await each.is_answered() for each in clients]), clients


@pytest.mark.parametrize(
    ("limits", "ours", "others"),
    [(ConnectionLimits(total=6, each=4), 4, 2), (ConnectionLimits(total=3, each=3), 3, 0)],
)
def test_neither_one_address_nor_all_get_more_than_the_limits(
    limits: ConnectionLimits, ours: int, others: int
) -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            at = await serve(stack, application(), Address("127.0.0.1", 0), limits=limits)
            count, first = await answered(at, 10)
            assert count == ours
            count, second = await answered(at, 10, "127.0.0.2")
            assert count == others
            for each in [*first, *second]:
                await each.close()
            # What is closed counts no longer. The server may see the end a moment later.
            while (found := await answered(at, 1, "127.0.0.1"))[0] != 1:
                await found[1][0].close()
            await found[1][0].close()

    asyncio.run(main())


def test_the_limits_leave_descriptors_for_the_agents_own_work() -> None:
    for listeners in (4,):
        assert ConnectionLimits.of_process().total * listeners <= 4096


def test_without_descriptors_control_answers_and_the_log_stays_short(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.cache_agent.servers.exhausted", str(tmp_path / "control")],
        cwd=ROOT,
        env=child_environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["control"] * 3 + ["again"], done.stderr
    assert len(done.stderr.splitlines()) < 10, done.stderr


@pytest.fixture
def no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system allows no more threads from now on."""

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)


def test_a_pull_without_a_thread_ends(open_node: NodeFactory, no_thread: None) -> None:
    node = open_node({})
    pull = node.pull(PullRequest(parse_image("reg.test/m:v1")))
    with pytest.raises(Busy, match="no thread"):
        pull.result()
    assert not node.puller.busy
    pull.join()


def test_an_agent_that_can_start_no_thread_is_not_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> tuple[int, int]:
        executor = BlockingExecutor(1)
        api = ObserveApi(executor, None, None)  # type: ignore[arg-type]
        app = api.application()
        runner = web.AppRunner(app)
        await runner.setup()
        handler = api._livez
        good = (await handler(None)).status  # type: ignore[arg-type]

        def refuse(self: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            bad = (await handler(None)).status  # type: ignore[arg-type]
        await runner.cleanup()
        executor.close()
        return good, bad

    assert asyncio.run(main()) == (200, 503)


def test_readiness_covers_the_mounter(tmp_path: Path) -> None:
    client = MounterClient(tmp_path / "mounter")
    assert "doesn't answer" in str(client.problem())

    server = listen(client.path)
    server.setblocking(True)

    def answer() -> None:
        peer, _ = server.accept()
        with peer:
            assert peer.recv(1) == b""

    thread = threading.Thread(target=answer)
    thread.start()
    assert client.problem() is None
    thread.join()
    server.close()
