"""Streams through a real proxy that follows the HTTPRoute: neither a rollout nor a controller's death cuts one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest

from tests.servers.haproxy import HaProxy
from tests.servers.process import until
from tests.workspace.controller.httpapi import HttpApi
from tests.workspace.controller.keda import install_kind
from tests.workspace.controller.living import control, make_runner
from tests.workspace.controller.rollouts.test_canary import V2, status
from tests.workspace.controller.simulation import NAME, NAMESPACE
from tests.workspace.controller.streams import Load, ServedPods, Servers, follow
from workspace.controller.cluster.kube_api import KubernetesApi
from workspace.controller.loops.drain_loop import DrainLoop
from workspace.controller.observation.revisions import version_id
from workspace.controller.rollouts.rollout_view import rollout_before
from workspace.controller.runner import Runner
from workspace.render import names
from workspace.rollout_status import RolloutPhase

FAST = 20.0  # times as fast as elsewhere, so that nobody waits for servers to be idle long enough
STEPS = [{"weight": 20}, {"pause": {}}, {"weight": 60}, {"pause": {}}]
# A loop of the controller that looks at servers.
Loop = Callable[[Runner, aiohttp.ClientSession], Coroutine[Any, Any, None]]


def fast_clock() -> float:
    return time.monotonic() * FAST


async def fast_sleep(seconds: float) -> None:
    await asyncio.sleep(seconds / FAST)


@dataclass
class Trial:
    """A Workspace behind a Gateway under load, and a controller that can be killed."""

    cluster: ServedPods
    servers: Servers
    http: HttpApi
    load: Load = field(default_factory=Load)
    loops: tuple[Loop, ...] = ()
    kills: int = 0
    working: asyncio.Task[None] | None = None

    async def control(self) -> None:
        """A controller of its own, with nothing that one before it knew."""
        async with self.http.client() as client, aiohttp.ClientSession() as session:
            runner = make_runner(KubernetesApi(client))
            drains = DrainLoop(runner, session, clock=fast_clock, sleep=fast_sleep)
            async with asyncio.TaskGroup() as group:
                group.create_task(control(client, runner))
                group.create_task(drains.run())
                for loop in self.loops:
                    group.create_task(loop(runner, session))

    async def kill_controller(self) -> None:
        if self.working is not None:
            self.working.cancel()
            await asyncio.gather(self.working, return_exceptions=True)
            self.kills += 1
        self.working = asyncio.create_task(self.control())

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        await until(condition, what=what)

    async def answered(self, version: str) -> None:
        """Until a version has answered some more requests."""
        count = self.load.answers[version_id(version)] + 5
        await self.until(lambda: self.load.answers[version_id(version)] >= count, "more answers")

    def phase(self) -> RolloutPhase | None:
        found = rollout_before(self.cluster.api.get("Workspace", NAMESPACE, NAME))
        return found.phase if found else None

    def is_paused_at(self, weight: int) -> bool:
        found = rollout_before(self.cluster.api.get("Workspace", NAMESPACE, NAME))
        return found is not None and (found.phase, found.attained) == (RolloutPhase.PAUSED, weight)

    def cut(self, version: str) -> int:
        """Streams of a version's servers at the moment when their pods were deleted."""
        servers = self.servers.by_address.values()
        return sum(each.cut for each in servers if each.version == version_id(version))


@asynccontextmanager
async def trial(
    servers: Servers | None = None, load: Load | None = None, loops: tuple[Loop, ...] = (), *,
    clients: int = 16, rollout: dict[str, Any] | None = None,
) -> AsyncIterator[Trial]:  # fmt: skip
    """`loops` run beside the controller's others, for what `rollout` asks beside its steps."""
    servers, cluster = servers or Servers(), ServedPods()
    serving = await servers.start()
    cluster.servers_of_pods = servers
    cluster.watch_pods()
    for number in range(5):
        cluster.add_node(f"n{number}")
    install_kind(cluster.api, "HTTPRoute")
    cluster.create_workspace(
        replicas=2, runtime={"port": servers.port, "drainSeconds": 3600},
        rollout={"strategy": "canary", "steps": STEPS, **(rollout or {})},
        route={"parentRefs": [{"name": "public"}]},
    )  # fmt: skip
    with HaProxy() as proxy:
        async with HttpApi(cluster.api, plain=True) as http, http.client() as client:
            made = Trial(cluster, servers, http, load or Load(), loops)
            tasks = [
                asyncio.create_task(each)
                for each in (step(cluster), follow(client, cluster.api, proxy, servers))
            ]
            await made.kill_controller()
            try:
                await made.until(
                    lambda: len(cluster.ready_servers()) == 2 and servers.turns > 0, "two servers"
                )
                await until_answered(proxy.url, made.load.body)
                tasks.append(asyncio.create_task(made.load.run(proxy.url, clients)))
                yield made
            finally:
                assert made.working is not None
                for each in (*tasks, made.working):
                    each.cancel()
                await asyncio.gather(*tasks, made.working, return_exceptions=True)
                await serving.cleanup()


async def step(cluster: ServedPods) -> None:
    while True:
        cluster.step()
        await asyncio.sleep(0.2)


async def until_answered(url: str, body: dict[str, Any]) -> None:
    """Before the first server is known to the Gateway, requests are refused rightly."""
    async with aiohttp.ClientSession() as session:
        while True:
            async with session.post(f"{url}/v1/completions", json=body) as answer:
                if answer.status == 200:
                    return


def played(scenario: Callable[[Trial], Awaitable[None]]) -> Trial:
    async def run() -> Trial:
        async with trial() as made:
            await scenario(made)
            return made

    done = asyncio.run(run())
    assert done.load.failures == []
    return done


async def begin(made: Trial) -> None:
    made.cluster.change_spec(model={"image": V2})
    await made.until(lambda: made.is_paused_at(20), "a canary with a fifth")
    await made.answered(status(made.cluster).version)


async def resume(made: Trial) -> None:
    made.cluster.annotate(resume=status(made.cluster).token)
    await made.until(lambda: made.is_paused_at(60), "a canary with more than half")
    await made.answered(status(made.cluster).version)


def test_promoted_and_undone_without_a_failed_request() -> None:
    async def scenario(made: Trial) -> None:
        await begin(made)
        await made.kill_controller()
        await resume(made)
        state = status(made.cluster)
        made.cluster.annotate(promote=state.version)
        await made.until(
            lambda: made.phase() is RolloutPhase.PROMOTING, "a version that takes over"
        )
        await made.kill_controller()
        await made.until(lambda: made.phase() is RolloutPhase.COMPLETED, "the new version alone")
        await made.answered(state.version)
        assert made.cut(state.stable) == 0
        # Back to the version before, as `rollout undo` asks.
        made.cluster.annotate(promote=state.stable)
        made.cluster.change_spec(model=None)
        made.cluster.change_spec(model={"image": "registry.example/team/llama:v1"})
        await made.until(lambda: status(made.cluster).version == state.stable, "the way back")
        await made.kill_controller()
        await made.until(lambda: made.phase() is RolloutPhase.COMPLETED, "the old version again")
        await made.answered(state.stable)

    assert played(scenario).kills == 3


@pytest.mark.parametrize("weight", [20, 60])
def test_taken_back_without_a_failed_or_cut_stream(weight: int) -> None:
    async def scenario(made: Trial) -> None:
        await begin(made)
        if weight == 60:
            await resume(made)
        state = status(made.cluster)
        made.cluster.annotate(abort=state.version)
        await made.until(lambda: made.phase() is RolloutPhase.ABORTED, "an abort")
        await made.kill_controller()
        beside = ("Deployment", NAMESPACE, names.candidate(NAME))
        await made.until(lambda: beside not in made.cluster.api.objects, "only old servers")
        assert made.cut(state.version) == 0
        await made.answered(state.stable)

    played(scenario)
