"""The analysis loop reads both versions' servers over HTTP and leaves a verdict for the next decision."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.workspace.controller.loops.test_scaling_loop import a_runner
from tests.workspace.test_analysis import page
from workspace.analysis import Outcome
from workspace.controller.cluster.object_cache import Key
from workspace.controller.loops.analysis_loop import TICK, AnalysisLoop
from workspace.controller.loops.prometheus import Prometheus, PrometheusAddress
from workspace.controller.runner import Runner
from workspace.render import names
from workspace.rollout_status import RolloutPhase, RolloutStatus

Json = dict[str, Any]
KEY: Key = ("team-a", "chat")
OLD, NEW = "chat-old", "chat-new"
# Servers by their addresses, each with the page that it shows.
Pages = dict[str, Callable[[], web.Response]]


def status(**changes: Any) -> RolloutStatus:
    return RolloutStatus(
        phase=RolloutPhase.PROGRESSING,
        version=NEW,
        stable=OLD,
        since="2026-01-01T00:00:00Z",
        weight=50,
    ).model_copy(update=changes)


def server(name: str, version: str, address: str, port: int) -> Json:
    return {
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": KEY[0], "uid": name, "resourceVersion": "1",
            "labels": {
                **names.labels(KEY[1], names.SERVER, KEY[1]), names.REVISION: version.rpartition("-")[2],
            },
        },
        "spec": {"containers": [{"ports": [{"name": names.PORT_NAME, "containerPort": port}]}]},
        "status": {"podIP": address, "conditions": [{"type": "Ready", "status": "True"}]},
    }  # fmt: skip


class Servers:
    """Pods at addresses of the loopback network, each with a page that a test changes."""

    def __init__(self) -> None:
        self.pages: Pages = {}
        self.now = 0.0

    async def run(
        self,
        scenario: Callable[[AnalysisLoop, Runner], Any],
        prometheus: PrometheusAddress | None = None,
    ) -> None:
        app = web.Application()
        app.router.add_get("/metrics", self._answer)
        serving = web.AppRunner(app, shutdown_timeout=0.1)
        await serving.setup()
        site = web.TCPSite(serving, "0.0.0.0", 0)  # noqa: S104 - all addresses of loopback
        await site.start()
        port = serving.addresses[0][1]
        runner = a_runner(KEY)
        for name, version, address in (("a", OLD, "127.0.0.2"), ("b", NEW, "127.0.0.3")):
            runner.cache.put(server(name, version, address, port))
        runner.rollouts[KEY] = status()
        try:
            async with aiohttp.ClientSession() as session:
                asked = Prometheus(prometheus, session) if prometheus else None
                loop = AnalysisLoop(runner, session, clock=lambda: self.now, prometheus=asked)
                await scenario(loop, runner)
        finally:
            await serving.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        return self.pages[str(request.host).partition(":")[0]]()

    def shows(self, *, old: str | int, new: str | int) -> None:
        for address, each in (("127.0.0.2", old), ("127.0.0.3", new)):
            self.pages[address] = lambda each=each: (  # type: ignore[misc]
                web.Response(text=each) if isinstance(each, str) else web.Response(status=each)
            )


def played(scenario: Callable[[Servers, AnalysisLoop, Runner], Any]) -> None:
    servers = Servers()
    asyncio.run(servers.run(lambda loop, runner: scenario(servers, loop, runner)))


def test_a_worse_version_is_told_with_the_time_that_was_compared() -> None:
    async def scenario(servers: Servers, loop: AnalysisLoop, runner: Runner) -> None:
        # What happened before is no part of it.
        servers.shows(old=page(requests=50, first_token=2.0), new=page(requests=5))
        await loop.compare(KEY)
        assert runner.analyses[KEY].verdict.outcome is Outcome.INCONCLUSIVE
        servers.now = 60.0
        slow = page(requests=205, first_token=0.4).replace('le="0.1"', 'le="0.1"')
        servers.shows(old=page(requests=250, first_token=0.1), new=slow)
        await loop.compare(KEY)
        result = runner.analyses[KEY]
        assert (result.window, result.seconds) == (f"{NEW}/50", 60.0)
        assert result.verdict.outcome is Outcome.FAILED
        assert "time to first token" in result.verdict.text

    played(scenario)


@pytest.mark.parametrize("broken", [503, "tgi_request_count 5\n", "x" * (2 << 20)])
def test_servers_that_dont_tell_make_it_inconclusive(broken: int | str) -> None:
    async def scenario(servers: Servers, loop: AnalysisLoop, runner: Runner) -> None:
        servers.shows(old=page(requests=50), new=page(requests=50))
        await loop.compare(KEY)
        servers.shows(old=page(requests=150), new=broken)
        await loop.compare(KEY)
        assert runner.analyses[KEY].verdict.outcome is Outcome.INCONCLUSIVE
        servers.shows(old=page(requests=150), new=page(requests=150))
        await loop.compare(KEY)
        assert runner.analyses[KEY].verdict.outcome is Outcome.PASSED

    played(scenario)


def test_a_new_weight_is_compared_anew_and_a_switch_with_what_was_before() -> None:
    async def scenario(servers: Servers, loop: AnalysisLoop, runner: Runner) -> None:
        runner.rollouts[KEY] = status(weight=0)
        servers.shows(old=page(requests=50), new=page(requests=5))
        await loop.compare(KEY)
        servers.shows(old=page(requests=150), new=page(requests=5))
        await loop.compare(KEY)
        runner.rollouts[KEY] = status(weight=100)
        await loop.compare(KEY)
        servers.shows(old=page(requests=150), new=page(requests=105, next_token=0.2))
        await loop.compare(KEY)
        result = runner.analyses[KEY]
        assert result.window == f"{NEW}/100"
        assert result.verdict.outcome is Outcome.FAILED
        runner.rollouts[KEY] = status(weight=100, version="chat-other")
        await loop.compare(KEY)
        assert runner.analyses[KEY].verdict.outcome is Outcome.INCONCLUSIVE

    played(scenario)


def test_the_time_in_which_servers_start_is_not_compared() -> None:
    """Else an analysis of 5 minutes would pass at the first requests to servers that took 10 to start."""

    async def scenario(servers: Servers, loop: AnalysisLoop, runner: Runner) -> None:
        document = runner.cache.workspace(KEY)
        assert document is not None
        rollout = {"strategy": "canary", "steps": [{"weight": 50}, {"analysis": {"seconds": 60}}]}
        spec = {**document["spec"], "rollout": rollout}
        runner.cache.put({**document, "spec": spec})
        servers.shows(old=page(requests=50), new=page(requests=5))
        for now, step, compared in ((0.0, 0, 0.0), (600.0, 0, 0.0), (615.0, 1, 15.0)):
            servers.now = now
            runner.rollouts[KEY] = status(step=step)
            await loop.compare(KEY)
            assert runner.analyses[KEY].seconds == compared

    played(scenario)


def test_what_a_server_counted_before_its_restart_still_counts() -> None:
    async def scenario(servers: Servers, loop: AnalysisLoop, runner: Runner) -> None:
        old, new = (
            50,
            (page(requests=5), page(requests=55, failed=30), page(requests=4), page(requests=80)),
        )
        for shown in new:
            servers.shows(old=page(requests=old), new=shown)
            await loop.compare(KEY)
            old += 100
        verdict = runner.analyses[KEY].verdict
        rate = next(each for each in verdict.measures if each.name == "error rate")
        assert (verdict.outcome, rate.candidate) == (Outcome.FAILED, 30 / (50 + 76))

    played(scenario)


def test_nothing_is_left_of_a_rollout_that_ends_while_its_servers_are_read() -> None:
    """Else the version would be taken back at once by an old verdict when it is tried again."""

    async def scenario(servers: Servers, loop: AnalysisLoop, runner: Runner) -> None:
        servers.shows(old=page(requests=50), new=page(requests=5))

        def late() -> web.Response:
            runner.rollouts.pop(KEY, None)
            return web.Response(text=page(requests=50))

        servers.pages["127.0.0.3"] = late
        await loop.compare(KEY)
        assert not runner.analyses

    played(scenario)


def test_each_workspace_is_compared_when_it_is_due_and_forgotten_afterwards() -> None:
    compared: list[Key] = []

    class Loop(AnalysisLoop):
        async def compare(self, key: Key) -> None:
            compared.append(key)
            self._due[key] = self._clock() + 15
            if key != KEY:
                raise ValueError("an odd page")

    runner = a_runner(KEY)
    runner.rollouts = {KEY: status(), ("team-b", "odd"): status()}
    now = 0.0

    async def tick(seconds: float) -> None:
        nonlocal now
        assert seconds == TICK
        now += seconds
        for _ in range(5):
            await asyncio.sleep(0)
        if now > 40:
            raise asyncio.CancelledError

    async def scenario() -> None:
        with pytest.raises(asyncio.CancelledError):
            await Loop(runner, None, clock=lambda: now, sleep=tick).run()  # type: ignore[arg-type]

    asyncio.run(scenario())
    assert compared.count(KEY) == compared.count(("team-b", "odd")) == 3


class SlowServers(Servers):
    """Each look at the clock finds one second gone: reading a page takes as long."""

    @property
    def now(self) -> float:
        self.looks += 1.0
        return self.looks

    @now.setter
    def now(self, value: float) -> None:
        self.looks = value


def test_a_workspace_whose_pages_take_long_is_read_less_often() -> None:
    """Whatever a tenant's servers show, the event loop is there for all others."""
    servers = SlowServers()

    async def scenario(loop: AnalysisLoop, runner: Runner) -> None:
        servers.shows(old=page(requests=50), new=page(requests=50))
        await loop.compare(KEY)
        assert loop.due_at(KEY) > servers.looks + 30

    asyncio.run(servers.run(scenario))
