"""A controller's metrics: what its passes came to, and what a scrape of a running one says."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from modelimage.errors import RateLimited, Unreachable
from tests.workspace.controller.cluster.test_leader import Running
from tests.workspace.controller.httpapi import HttpApi
from tests.workspace.controller.simulation import Cluster
from workspace.controller.process.health_server import answering
from workspace.controller.process.metrics import Metrics
from workspace.controller.process.queue import WorkQueue
from workspace.controller.process.workers import Key, Workers


def samples(text: str) -> dict[str, float]:
    """Each sample by its name and the values of its labels: `name value value`."""
    return {
        " ".join((sample.name.removeprefix("weightyard_controller_"), *sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }  # fmt: skip


def test_passes_are_counted_by_how_they_ended() -> None:
    async def scenario() -> Metrics:
        metrics = Metrics()
        queue: WorkQueue[Key] = WorkQueue()
        all_seen = asyncio.Event()

        async def once(key: Key) -> float | None:
            if key[1] == "away":
                raise Unreachable("the API server is away")
            if key[1] == "odd":
                raise ZeroDivisionError
            all_seen.set()
            return None

        for name in ("away", "odd", "good"):
            queue.add(("ns", name))
        workers = Workers(queue, once, workers=1, passes=metrics.passes("Workspace"))
        running = asyncio.create_task(workers.run())
        await all_seen.wait()
        await asyncio.sleep(0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        return metrics

    found = samples(asyncio.run(scenario()).exposition()[0].decode())
    assert found["passes_started_total Workspace"] == 3
    ended = {
        name: value for name, value in found.items() if name.startswith("passes_finished_total")
    }
    assert ended == {
        f"passes_finished_total Workspace {outcome}": 1 for outcome in ("Unreachable", "bug", "done")
    }  # fmt: skip
    assert found["pass_seconds_count Workspace"] == 3


@pytest.mark.parametrize(("asked", "waited"), [(None, 0.5), (30.0, 30.0), (86400.0, 300.0)])
def test_no_answer_keeps_a_key_waiting_for_hours(asked: float | None, waited: float) -> None:
    async def scenario() -> float:
        given: asyncio.Future[float] = asyncio.get_running_loop().create_future()

        class Noting(WorkQueue[Key]):
            def add_later(self, key: Key, seconds: float) -> None:
                given.set_result(seconds)

        async def limited(_: Key) -> float | None:
            raise RateLimited("slow down", retry_after=asked)

        queue = Noting()
        queue.add(("ns", "name"))
        running = asyncio.create_task(Workers(queue, limited, workers=1).run())
        seconds = await given
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        return seconds

    assert asyncio.run(scenario()) == waited


def test_a_scrape_of_the_leader_says_how_its_workspaces_are() -> None:
    async def scenario() -> dict[str, float]:
        cluster = Cluster()
        cluster.create_workspace()
        async with HttpApi(cluster.api) as http, aiohttp.ClientSession() as session:
            leader = Running(http, "a")
            metrics = leader.options.metrics
            async with answering(
                leader.options.liveness,
                host="127.0.0.1",
                port=0,
                metrics=metrics.exposition,
            ) as port:
                await leader.led.wait()

                async def scrape() -> dict[str, float]:
                    async with session.get(f"http://127.0.0.1:{port}/metrics") as answer:
                        return samples(await answer.text())

                found = await scrape()
                while sum(v for n, v in found.items() if n.startswith("workspaces ")) < 1:
                    await asyncio.sleep(0)
                    found = await scrape()
            await leader.end()
        return found

    found = asyncio.run(scenario())
    assert found["leads"] == 1
    assert found["failing_watches"] == 0
    (state,) = (name for name in found if name.startswith("workspaces "))
    assert state.split()[1].isalpha()
