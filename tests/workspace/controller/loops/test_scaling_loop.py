"""The scaling loop: each Workspace is read by itself, and none waits for the servers of another."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.workspace import samples
from tests.workspace.controller.living import resolve
from workspace.controller.cluster.kube_api import KubernetesApi
from workspace.controller.cluster.object_cache import Key, WatchCache
from workspace.controller.loops import scaling_loop
from workspace.controller.loops.scaling_loop import (
    PERIOD,
    ScalingLoop,
    ScrapedServer,
    Targets,
    read_load,
)
from workspace.controller.runner import Runner
from workspace.render import names
from workspace.render.routing import SystemSettings
from workspace.scaler import Load, Reading

Json = dict[str, Any]
SLOW, QUICK, BROKEN = ("team-a", "slow"), ("team-b", "quick"), ("team-c", "broken")


class CountingLoop(ScalingLoop):
    """Counts how often each Workspace is scaled. The slow one takes until `released`."""

    def __init__(self, runner: Runner, session: aiohttp.ClientSession, rounds: int) -> None:
        super().__init__(runner, session, sleep=self._round_over)
        self.scaled: list[Key] = []
        self.released = asyncio.Event()
        self._rounds = rounds

    async def scale(self, key: Key) -> None:
        self.scaled.append(key)
        if key == SLOW:
            await self.released.wait()
        if key == BROKEN:
            raise ValueError("an odd page")

    async def _round_over(self, seconds: float) -> None:
        assert seconds == PERIOD
        for _ in range(5):
            await asyncio.sleep(0)
        self._rounds -= 1
        if not self._rounds:
            raise asyncio.CancelledError


def a_runner(*keys: Key) -> Runner:
    cache = WatchCache()
    for namespace, name in keys:
        document = samples.document(name, namespace=namespace)
        cache.put({**document, "metadata": {**document["metadata"], "uid": name}})
    api: KubernetesApi = None  # type: ignore[assignment]  # nothing is written
    return Runner(api=api, cache=cache, resolver=resolve, environment=SystemSettings())


def test_a_slow_workspace_is_late_itself_and_holds_up_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> CountingLoop:
        loop = CountingLoop(a_runner(SLOW, QUICK, BROKEN), None, 4)  # type: ignore[arg-type]
        with pytest.raises(asyncio.CancelledError):
            await loop.run()
        return loop

    loop = asyncio.run(scenario())
    assert [loop.scaled.count(key) for key in (SLOW, QUICK, BROKEN)] == [1, 4, 4]
    assert len([record for record in caplog.records if record.exc_info]) == 4


@pytest.mark.parametrize(("owner", "current"), [("quick", 3), ("another", 0)])
def test_anothers_deployment_of_its_name_is_not_scaled(owner: str, current: int) -> None:
    runner = a_runner(QUICK)
    scaled = samples.document("quick", namespace="team-b", scale={"min": 1, "max": 4})
    runner.cache.put({**scaled, "metadata": {**scaled["metadata"], "uid": "quick"}})
    labels = names.labels("quick", names.SERVER)
    runner.cache.put({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {
            "name": "quick", "namespace": "team-b", "labels": labels, "uid": "d",
            "ownerReferences": [{"uid": owner, "controller": True}],
        },
        "spec": {
            "replicas": 3, "selector": {"matchLabels": names.selector("quick", names.SERVER)},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": []}},
        },
    })  # fmt: skip
    loop = ScalingLoop(runner, None)  # type: ignore[arg-type]
    found = loop._find(QUICK)
    assert found is not None
    assert found[1] == Targets(current, (), None)


def test_an_engine_without_queue_metrics_is_told_once() -> None:
    """Otherwise its Workspace would never be scaled, and nothing would say why."""
    pages = [
        "python_info 1\n",
        "python_info 1\n",
        "vllm:num_requests_running 0\nvllm:num_requests_waiting 0\n",
    ]

    async def page(_: web.Request) -> web.Response:
        return web.Response(text=pages.pop(0))

    async def scenario() -> list[tuple[str | None, int]]:
        app = web.Application()
        app.router.add_get("/metrics", page)
        served = web.AppRunner(app, shutdown_timeout=0.1)
        await served.setup()
        site = web.TCPSite(served, "127.0.0.1", 0)
        await site.start()
        url = f"http://127.0.0.1:{served.addresses[0][1]}"
        runner = a_runner(QUICK)
        seen: list[tuple[str | None, int]] = []
        async with aiohttp.ClientSession() as session:
            while pages:
                _, unread = await read_load(session, Targets(1, (ScrapedServer("a", url),), None))
                runner.note_unread(QUICK, unread)
                known = runner.wanted.unread.get(QUICK)
                seen.append((known and known.message, len(runner.queue)))
                if len(runner.queue):
                    runner.queue.done(await runner.queue.take())
        await served.cleanup()
        return seen

    lacks = "the server's metrics have no queue length"
    assert asyncio.run(scenario()) == [(lacks, 1), (lacks, 0), (None, 1)]


def test_nothing_is_left_of_a_workspace_that_goes_while_its_servers_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else one of the same name would begin with its replicas."""

    async def scenario(*, gone: bool) -> Runner:
        runner = a_runner()
        document = samples.document(QUICK[1], namespace=QUICK[0], scale={"min": 1, "max": 4})
        document = {**document, "metadata": {**document["metadata"], "uid": "1"}}
        runner.cache.put(document)
        loop = ScalingLoop(runner, None)  # type: ignore[arg-type]

        async def read(*_: object) -> tuple[Load, None]:
            if gone:
                runner.cache.drop(document)
            return Load(1, 1, (Reading(0.0, 0.0, 0.0),), 0), None

        monkeypatch.setattr(scaling_loop, "read_load", read)
        await loop.scale(QUICK)
        return runner

    kept, left = (asyncio.run(scenario(gone=gone)) for gone in (False, True))
    assert set(kept.loads) == set(kept.wanted.replicas) == {QUICK}
    assert not left.loads
    assert not left.wanted.replicas
    assert not len(left.queue)


def test_the_servers_of_one_workspace_are_read_a_few_at_a_time() -> None:
    """Thousands of slow servers must not take thousands of connections."""
    at_once, most = 0, 0

    async def page(_: web.Request) -> web.Response:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0)
        at_once -= 1
        return web.Response(text="vllm:num_requests_running 1\nvllm:num_requests_waiting 2\n")

    async def scenario() -> None:
        app = web.Application()
        app.router.add_get("/{any:.*}", page)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            servers = tuple(ScrapedServer(str(number), url) for number in range(100))
            load, unread = await read_load(session, Targets(1, servers, None))
        await runner.cleanup()
        assert load.waiting == 200
        assert unread is None

    asyncio.run(scenario())
    assert 1 <= most <= 32
