"""The probe loop asks both versions' servers over HTTP, and one tenant's probes or servers delay no other's."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from modelimage.errors import NotFound
from tests.workspace.controller.loops.test_analysis_loop import KEY, NEW, OLD, server, status
from tests.workspace.controller.loops.test_scaling_loop import a_runner
from workspace.analysis import Outcome
from workspace.controller.cluster.object_cache import Key
from workspace.controller.loops import probe_loop
from workspace.controller.loops.analysis_loop import TICK
from workspace.controller.loops.probe_loop import ProbeLoop
from workspace.controller.runner import Runner
from workspace.probes.probe_set import ProbeSet, parse_probes
from workspace.render import names
from workspace.schema import Workspace

Json = dict[str, Any]
Answering = Callable[[web.Request], Awaitable[web.StreamResponse]]
SECRET = "an expected answer"
ROLLOUT = {"strategy": "canary", "analysis": {"probes": {"configMap": {"name": "answers"}}}}
AT_PROBES = {"weight": 0, "step": 1}


def probes(count: int = 2) -> ProbeSet:
    listed = [{"name": f"p{n}", "prompt": f"prompt {n}", "contains": SECRET} for n in range(count)]
    return parse_probes(json.dumps({"probes": listed}), what="the file")


def completion(text: str) -> Answering:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response({"choices": [{"text": text}]})

    return answer


RIGHT, WRONG = completion(f" {SECRET}"), completion(" nonsense")


class Fleet:
    """One server of each version; `answers` is how each does, `asked` what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, Answering] = {"127.0.0.2": RIGHT, "127.0.0.3": RIGHT}
        self.asked: dict[str, list[Json]] = {"127.0.0.2": [], "127.0.0.3": []}
        self.file: ProbeSet | NotFound = probes()
        self.images: list[str] = []
        self.now = 0.0
        self.runner = a_runner(KEY)
        self.loop: ProbeLoop

    async def source(self, workspace: Workspace, image: str) -> ProbeSet:
        self.images.append(image)
        if isinstance(self.file, NotFound):
            raise self.file
        return self.file

    async def run(self, scenario: Callable[[Fleet], Awaitable[None]]) -> None:
        app = web.Application()
        app.router.add_post("/v1/completions", self._answer)
        serving = web.AppRunner(app, shutdown_timeout=0.1)
        await serving.setup()
        await web.TCPSite(serving, "0.0.0.0", 0).start()  # noqa: S104 - all addresses of loopback
        port = serving.addresses[0][1]
        document = self.runner.cache.workspace(KEY)
        assert document is not None
        self.runner.cache.put({**document, "spec": {**document["spec"], "rollout": ROLLOUT}})
        for name, version, address in (("a", OLD, "127.0.0.2"), ("b", NEW, "127.0.0.3")):
            self.runner.cache.put(server(name, version, address, port))
        self.runner.cache.put(revision(NEW))
        self.runner.rollouts[KEY] = status(**AT_PROBES)
        try:
            async with aiohttp.ClientSession() as session:
                self.loop = ProbeLoop(self.runner, session, self.source, clock=lambda: self.now)
                await scenario(self)
        finally:
            await serving.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        address = str(request.host).partition(":")[0]
        self.asked[address].append(await request.json())
        return await self.answers[address](request)


def revision(name: str) -> Json:
    data = {
        "requested": {}, "image": f"registry.example/team/llama@sha256:{'1' * 64}", "key": f"sha256:{'2' * 64}",
        "variant": "bf16", "gpus": 1, "context": 0, "startupSeconds": 1, "reasons": [], "template": {},
    }  # fmt: skip
    labels = names.labels(KEY[1], names.SERVER, KEY[1])
    metadata = {
        "name": name,
        "namespace": KEY[0],
        "uid": name,
        "resourceVersion": "1",
        "labels": labels,
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": metadata,
        "revision": 2,
        "data": data,
    }


def played(scenario: Callable[[Fleet], Awaitable[None]]) -> Fleet:
    fleet = Fleet()
    asyncio.run(fleet.run(scenario))
    return fleet


def outcome(runner: Runner) -> Outcome:
    return runner.probes[KEY].outcome(0)


def test_right_answers_pass_and_only_the_new_version_is_asked(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)

    async def scenario(fleet: Fleet) -> None:
        await fleet.loop.ask(KEY)
        assert outcome(fleet.runner) is Outcome.PASSED

    fleet = played(scenario)
    asked = fleet.asked["127.0.0.3"]
    assert sorted(each["prompt"] for each in asked) == ["prompt 0", "prompt 1"]
    assert all((each["temperature"], each["seed"]) == (0, 0) for each in asked)
    assert fleet.asked["127.0.0.2"] == []
    assert fleet.images == [f"registry.example/team/llama@sha256:{'1' * 64}"]
    assert "prompt" not in caplog.text
    assert SECRET not in caplog.text


def test_wrong_answers_fail_unless_the_serving_version_is_wrong_too() -> None:
    async def scenario(fleet: Fleet) -> None:
        fleet.answers["127.0.0.3"] = WRONG
        await fleet.loop.ask(KEY)
        result = fleet.runner.probes[KEY]
        assert result.outcome(0) is Outcome.FAILED
        assert "First p0: the answer lacks the expected text." in result.text
        assert SECRET not in result.text

    played(scenario)

    async def both(fleet: Fleet) -> None:
        fleet.answers = dict.fromkeys(fleet.answers, WRONG)
        await fleet.loop.ask(KEY)
        assert outcome(fleet.runner) is Outcome.INCONCLUSIVE
        # They are final: nothing is asked twice.
        await fleet.loop.ask(KEY)

    assert [len(each) for each in played(both).asked.values()] == [2, 2]


async def _redirect(request: web.Request) -> web.StreamResponse:
    raise web.HTTPFound("http://127.0.0.2/v1/completions")


async def _endless(request: web.Request) -> web.StreamResponse:
    answer = web.StreamResponse()
    await answer.prepare(request)
    while True:
        await answer.write(b" " * 65_536)


async def _never(request: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


async def _bomb(request: web.Request) -> web.StreamResponse:
    return web.Response(body=b"\x1f\x8b" + b"0" * 100, headers={"Content-Encoding": "gzip"})


async def _page(request: web.Request) -> web.StreamResponse:
    return web.Response(text="<html>welcome", content_type="text/html")


async def _busy(request: web.Request) -> web.StreamResponse:
    return web.Response(status=503)


async def _locked(request: web.Request) -> web.StreamResponse:
    return web.Response(status=401)


@pytest.mark.parametrize("answering", [_redirect, _endless, _never, _bomb, _page, _busy, _locked])
def test_servers_that_dont_answer_never_pass_and_are_asked_again(
    answering: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe_loop, "_ANSWER", 0.3 if answering is _never else 30)

    async def scenario(fleet: Fleet) -> None:
        fleet.answers["127.0.0.3"] = answering
        await fleet.loop.ask(KEY)
        assert outcome(fleet.runner) is Outcome.INCONCLUSIVE
        assert fleet.asked["127.0.0.2"] == [], "a redirect leads nowhere"
        fleet.answers["127.0.0.3"] = RIGHT
        await fleet.loop.ask(KEY)
        assert outcome(fleet.runner) is Outcome.PASSED

    played(scenario)


def test_a_request_that_the_new_version_alone_refuses_is_a_regression() -> None:
    async def too_long(request: web.Request) -> web.StreamResponse:
        return web.Response(status=400)

    async def scenario(fleet: Fleet) -> None:
        fleet.answers["127.0.0.3"] = too_long
        await fleet.loop.ask(KEY)
        assert outcome(fleet.runner) is Outcome.FAILED
        assert "answers with status 400" in fleet.runner.probes[KEY].text

    played(scenario)


def test_a_file_that_cant_be_read_is_told_and_read_again() -> None:
    async def scenario(fleet: Fleet) -> None:
        fleet.file = NotFound("configmaps answers not found")
        await fleet.loop.ask(KEY)
        assert outcome(fleet.runner) is Outcome.INCONCLUSIVE
        assert "can't be asked: configmaps answers not found" in fleet.runner.probes[KEY].text
        fleet.file = probes(1)
        await fleet.loop.ask(KEY)
        assert outcome(fleet.runner) is Outcome.PASSED
        # Another file is another question.
        fleet.file, fleet.answers["127.0.0.3"] = probes(3), WRONG
        await fleet.loop.ask(KEY)
        assert outcome(fleet.runner) is Outcome.FAILED

    played(scenario)


def test_nothing_is_asked_of_no_server_and_at_another_step() -> None:
    async def scenario(fleet: Fleet) -> None:
        fleet.runner.rollouts[KEY] = status(weight=0, step=0)
        await fleet.loop.ask(KEY)
        assert not fleet.runner.probes
        fleet.runner.rollouts[KEY] = status(**AT_PROBES, version="chat-other")
        fleet.runner.cache.put(revision("chat-other"))
        await fleet.loop.ask(KEY)
        assert "the new version has no ready server" in fleet.runner.probes[KEY].text

    assert played(scenario).asked == {"127.0.0.2": [], "127.0.0.3": []}


def test_nothing_is_left_of_a_rollout_that_ends_while_servers_answer() -> None:
    async def scenario(fleet: Fleet) -> None:
        async def late(request: web.Request) -> web.StreamResponse:
            fleet.runner.rollouts.pop(KEY, None)
            return await WRONG(request)

        fleet.answers["127.0.0.3"] = late
        await fleet.loop.ask(KEY)
        assert not fleet.runner.probes

    played(scenario)


def test_a_rollout_before_its_probes_isnt_read_every_second() -> None:
    now, read = 0.0, 0
    runner = a_runner(KEY)
    document = runner.cache.workspace(KEY)
    assert document is not None
    runner.cache.put({**document, "spec": {**document["spec"], "rollout": ROLLOUT}})
    runner.rollouts[KEY] = status(weight=0, step=0)

    class Loop(ProbeLoop):
        async def ask(self, key: Key) -> None:
            nonlocal read
            read += 1
            await super().ask(key)

    async def unread(workspace: Workspace, image: str) -> ProbeSet:
        raise NotFound("no file")

    async def tick(seconds: float) -> None:
        nonlocal now
        now += seconds
        for _ in range(5):
            await asyncio.sleep(0)
        if now == 60:
            assert 1 <= read <= 5
            runner.rollouts[KEY] = status(**AT_PROBES)
        if now > 62:
            raise asyncio.CancelledError

    async def scenario() -> None:
        with pytest.raises(asyncio.CancelledError):
            await Loop(runner, None, unread, clock=lambda: now, sleep=tick).run()  # type: ignore[arg-type]

    asyncio.run(scenario())
    assert KEY in runner.probes, "the step of probes is noticed at once"


def test_one_tenants_slow_probes_delay_no_other_and_are_asked_ever_later() -> None:
    asked: list[tuple[Key, float]] = []
    now, slow, quick = 0.0, ("team-a", "slow"), ("team-b", "quick")

    class Loop(ProbeLoop):
        async def ask(self, key: Key) -> None:
            asked.append((key, now))
            if key == slow:
                await asyncio.Event().wait()
            await super().ask(key)

    async def unread(workspace: Workspace, image: str) -> ProbeSet:
        raise NotFound("no file")

    runner = a_runner(slow, quick)
    for key in (slow, quick):
        document = runner.cache.workspace(key)
        assert document is not None
        runner.cache.put({**document, "spec": {**document["spec"], "rollout": ROLLOUT}})
        runner.rollouts[key] = status(**AT_PROBES)

    async def tick(seconds: float) -> None:
        nonlocal now
        now += seconds
        for _ in range(5):
            await asyncio.sleep(0)
        if now > 1000:
            raise asyncio.CancelledError

    async def scenario() -> None:
        with pytest.raises(asyncio.CancelledError):
            await Loop(runner, None, unread, clock=lambda: now, sleep=tick).run()  # type: ignore[arg-type]

    asyncio.run(scenario())
    assert len([when for key, when in asked if key == slow]) == 1
    when = [when for key, when in asked if key == quick]
    # To the next tick.
    assert [later - one - TICK for one, later in pairwise(when)] == [15, 30, 60, 120, 240, 300]
