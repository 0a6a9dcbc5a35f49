"""The activator in front of an engine over real HTTP: what passes, what waits, what is told to come back."""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import AsyncIterator

import aiohttp
from aiohttp import web
from yarl import URL

from tests.servers.process import until
from tests.workspace.activator.engine import Engine
from workspace.activator.gate import QueueLimits
from workspace.activator.proxy import Activator, ProxyOptions, serve
from workspace.server_metrics import parse_held

QUICK = QueueLimits(capacity=4, timeout=86400, interval=0.01, retry_after=7)
ENDLESS = 86400.0  # seconds that a request takes which nobody waits for


class Place:
    """An engine that can come and go, and an activator before it."""

    def __init__(self, limits: QueueLimits = QUICK) -> None:
        self.upstreams: list[str] = []
        self.activator = Activator(
            ProxyOptions(lambda: self.upstreams, limits=limits, max_body=1 << 20)
        )
        self._runners: list[web.AppRunner] = []

    async def start_engine(self, engine: Engine) -> str:
        runner = web.AppRunner(engine.app(), access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self._runners.append(runner)
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self.upstreams.append(url)
        return url

    async def stop_engines(self) -> None:
        for runner in self._runners:
            await runner.cleanup()
        self._runners.clear()


@contextlib.asynccontextmanager
async def place(limits: QueueLimits = QUICK) -> AsyncIterator[tuple[Place, aiohttp.ClientSession]]:
    """The place, and a session whose base is the activator."""
    made, port = Place(limits), asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(
        serve(made.activator, host="127.0.0.1", port=0, ready=port.set_result)
    )
    base = f"http://127.0.0.1:{await port}"
    try:
        async with aiohttp.ClientSession(base) as session:
            yield made, session
    finally:
        serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving
        await made.stop_engines()


async def complete(session: aiohttp.ClientSession, prompt: str = "hello") -> int:
    async with session.post("/v1/completions", json={"prompt": prompt}) as answer:
        await answer.read()
        return answer.status


def test_requests_and_answers_pass_unchanged() -> None:
    async def scenario() -> None:
        async with place() as (made, session):
            await made.start_engine(Engine())
            target = URL("/echo?a=1&b=%20%2F+c", encoded=True)
            headers = {"Authorization": "Bearer x", "X-Request-Id": "7", "Connection": "close"}
            async with session.put(target, data=b"body", headers=headers) as answer:
                said = await answer.json()
        assert answer.status == 418
        assert (said["method"], said["target"], said["body"]) == ("PUT", str(target), "body")
        assert said["headers"]["authorization"] == "Bearer x"
        assert said["headers"]["x-request-id"] == "7"

    asyncio.run(scenario())


def test_tokens_are_passed_on_as_they_come() -> None:
    async def scenario() -> None:
        async with place() as (made, session):
            engine = Engine()
            await made.start_engine(engine)
            async with session.post("/stream", json={}) as answer:
                assert await answer.content.readuntil(b"\n\n") == b"data: one\n\n"
                engine.go_on.set()
                assert await answer.content.read() == b"data: [DONE]\n\n"
            assert answer.content_type == "text/event-stream"

    asyncio.run(scenario())


def test_requests_wait_for_the_first_server_and_none_is_lost() -> None:
    async def scenario() -> None:
        async with place() as (made, session):
            tasks = [asyncio.create_task(complete(session, str(n))) for n in range(3)]
            await until(lambda: made.activator.gate.waiting == 3, what="waiting requests")
            async with session.get("/activator/metrics") as answer:
                assert parse_held(await answer.text()) == 3
            engine = Engine(slots=3, seconds=0.01)
            await made.start_engine(engine)
            assert await asyncio.gather(*tasks) == [200, 200, 200]
            assert len(engine.bodies) == 3
            assert made.activator.gate.waiting == 0

    asyncio.run(scenario())


def test_beyond_the_bound_clients_are_told_when_to_come_back() -> None:
    async def scenario() -> None:
        async with place() as (made, session):
            tasks = [asyncio.create_task(complete(session)) for _ in range(QUICK.capacity)]
            await until(
                lambda: made.activator.gate.waiting == QUICK.capacity, what="waiting requests"
            )
            async with session.post("/v1/completions", json={}) as answer:
                assert answer.status == 503
                assert answer.headers["Retry-After"] == "7"
                assert "already waiting" in (await answer.json())["error"]["message"]
            await made.start_engine(Engine(seconds=0.01))
            assert await asyncio.gather(*tasks) == [200] * QUICK.capacity

    asyncio.run(scenario())


def test_patience_ends_with_a_503_that_says_where_to_look() -> None:
    async def scenario() -> None:
        async with (
            place(QueueLimits(timeout=0.05, interval=0.01)) as (_, session),
            session.post("/v1/completions", json={}) as answer,
        ):
            assert answer.status == 503
            assert "no server became ready" in (await answer.json())["error"]["message"]

    asyncio.run(scenario())


def test_a_client_that_goes_away_no_longer_waits() -> None:
    async def scenario() -> None:
        async with place() as (made, session):
            task = asyncio.create_task(complete(session))
            await until(lambda: made.activator.gate.waiting == 1, what="waiting request")
            task.cancel()
            await until(lambda: made.activator.gate.waiting == 0, what="end of the waiting")

    asyncio.run(scenario())


def test_a_server_that_is_not_ready_gets_nothing() -> None:
    async def scenario() -> None:
        async with place() as (made, session):
            booting = Engine(boot=ENDLESS)
            await made.start_engine(booting)
            task = asyncio.create_task(complete(session))
            await until(lambda: made.activator.gate.waiting == 1, what="waiting request")
            booting.boot = 0.0
            assert await task == 200

    asyncio.run(scenario())


def test_two_servers_share_the_requests() -> None:
    async def scenario() -> None:
        async with place() as (made, session):
            engines = [Engine(slots=8, seconds=ENDLESS), Engine(slots=8, seconds=ENDLESS)]
            for engine in engines:
                await made.start_engine(engine)
            tasks = [asyncio.create_task(complete(session)) for _ in range(4)]
            await until(lambda: sum(engine.running for engine in engines) == 4, what="requests")
            assert all(engine.running for engine in engines)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(scenario())


def test_a_server_that_dies_under_a_request_is_a_502_and_is_not_asked_twice() -> None:
    async def scenario() -> None:
        async with place() as (made, session):
            engine = Engine(seconds=ENDLESS)
            await made.start_engine(engine)
            task = asyncio.create_task(complete(session))
            await until(lambda: engine.running == 1, what="running request")
            await made.stop_engines()
            assert await task == 502
            assert len(engine.bodies) == 1

    asyncio.run(scenario())


def test_a_body_beyond_the_limit_is_refused() -> None:
    async def scenario() -> None:
        async with place() as (made, session):
            await made.start_engine(Engine())
            async with session.post("/v1/completions", data=io.BytesIO(b"x" * (2 << 20))) as answer:
                assert answer.status == 413

    asyncio.run(scenario())
