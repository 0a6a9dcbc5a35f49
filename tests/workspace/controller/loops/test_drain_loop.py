"""The drain loop reads the servers of a version without requests until they have none left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.workspace.controller.loops.test_analysis_loop import KEY, NEW, OLD, server
from tests.workspace.controller.loops.test_scaling_loop import a_runner
from workspace.controller.loops.drain_loop import DrainLoop
from workspace.controller.rollouts.traffic import SETTLE_SECONDS
from workspace.controller.runner import Runner


def metrics(running: int, waiting: int = 0) -> str:
    return f"vllm:num_requests_running {running}\nvllm:num_requests_waiting {waiting}\n"


class Server:
    """One server of the old version, with the page that it shows; `now` is the loop's clock."""

    def __init__(self) -> None:
        self.text = metrics(0)
        self.now = 0.0

    async def run(self, scenario: Callable[[Server, DrainLoop, Runner], Any]) -> None:
        app = web.Application()
        app.router.add_get("/metrics", self._answer)
        serving = web.AppRunner(app, shutdown_timeout=0.1)
        await serving.setup()
        await web.TCPSite(serving, "127.0.0.1", 0).start()
        runner = a_runner(KEY)
        runner.cache.put(server("a", OLD, "127.0.0.1", serving.addresses[0][1]))
        runner.draining[KEY] = OLD
        try:
            async with aiohttp.ClientSession() as session:
                loop = DrainLoop(runner, session, clock=lambda: self.now)
                await scenario(self, loop, runner)
        finally:
            await serving.cleanup()

    async def _answer(self, _: web.Request) -> web.Response:
        return web.Response(text=self.text, status=200 if self.text else 500)

    async def looked(self, loop: DrainLoop, text: str, seconds: float = 1.0) -> None:
        self.text = text
        self.now += seconds
        await loop.look(KEY)


def played(scenario: Callable[[Server, DrainLoop, Runner], Any]) -> None:
    asyncio.run(Server().run(scenario))


def test_a_version_is_idle_once_its_servers_have_been_for_a_while() -> None:
    async def scenario(one: Server, loop: DrainLoop, runner: Runner) -> None:
        await one.looked(loop, metrics(2))
        await one.looked(loop, metrics(0))
        await one.looked(loop, metrics(0), SETTLE_SECONDS - 0.5)
        assert runner.idle == {}
        await one.looked(loop, metrics(0), 0.5)
        assert runner.idle == {KEY: OLD}
        assert len(runner.queue) == 1

    played(scenario)


@pytest.mark.parametrize("meanwhile", [metrics(1), metrics(0, 1), "", "python_info 1\n"])
def test_whoever_has_a_request_or_does_not_say_is_not_idle(meanwhile: str) -> None:
    async def scenario(one: Server, loop: DrainLoop, runner: Runner) -> None:
        await one.looked(loop, metrics(0))
        await one.looked(loop, meanwhile, SETTLE_SECONDS - 1)
        await one.looked(loop, metrics(0), 2)
        assert runner.idle == {}
        await one.looked(loop, metrics(0), SETTLE_SECONDS)
        assert runner.idle == {KEY: OLD}

    played(scenario)


def test_of_another_version_nothing_is_known_yet() -> None:
    async def scenario(one: Server, loop: DrainLoop, runner: Runner) -> None:
        await one.looked(loop, metrics(0))
        runner.draining[KEY] = NEW
        await one.looked(loop, metrics(0), SETTLE_SECONDS)
        assert runner.idle == {}

    played(scenario)
