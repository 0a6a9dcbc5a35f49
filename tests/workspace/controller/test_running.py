"""The controller as it runs: its watches and real HTTPS on one side, a cluster that lives on the other."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_agent.api.kube.refusals import Conflict
from modelimage.errors import AccessDenied, InvalidInput, NotFound, RateLimited, Unreachable
from tests.examples import examples
from tests.servers import process
from tests.workspace import samples
from tests.workspace.controller.httpapi import HttpApi
from tests.workspace.controller.living import control, make_runner, resolve
from tests.workspace.controller.simulation import NAME, NAMESPACE, Cluster
from workspace.controller.cluster.kube_api import KubernetesApi
from workspace.controller.cluster.object_cache import WatchCache
from workspace.controller.observation.observed import Reference
from workspace.controller.runner import Runner
from workspace.render import names
from workspace.render.release import ResolvedImages
from workspace.render.routing import SystemSettings
from workspace.schema import Workspace

Json = dict[str, Any]


@contextlib.asynccontextmanager
async def running(cluster: Cluster) -> AsyncIterator[tuple[HttpApi, Runner]]:
    """A controller at work on a cluster."""
    async with HttpApi(cluster.api) as http, http.client() as client:
        runner = make_runner(KubernetesApi(client))
        working = asyncio.create_task(control(client, runner))
        try:
            yield http, runner
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)


async def until(cluster: Cluster, condition: Callable[[], bool]) -> None:
    """Let the cluster live until a condition holds."""

    def lived() -> bool:
        if condition():
            return True
        cluster.step()
        return False

    try:
        await process.until(lived, what="such a cluster")
    except TimeoutError as error:
        raise AssertionError(f"the last writes: {cluster.api.writes[-8:]}") from error


def is_ready(cluster: Cluster) -> bool:
    found = cluster.api.get("Workspace", NAMESPACE, NAME).get("status", {}).get("conditions", ())
    return any(each["type"] == "Ready" and each["status"] == "True" for each in found)


def prepared(**spec: Any) -> Cluster:
    cluster = Cluster()
    cluster.add_node("n1")
    cluster.add_node("n2")
    cluster.create_workspace(**spec)
    return cluster


def test_a_workspace_gets_ready_rolls_and_then_nothing_more_is_written() -> None:
    async def scenario() -> None:
        cluster = prepared(replicas=1)
        async with running(cluster) as (http, runner):
            await until(cluster, lambda: is_ready(cluster))
            cluster.change_spec(model={"image": "registry.example/team/llama:v2"})
            new = samples.pinned("registry.example/team/llama:v2").image
            await until(cluster, lambda: new in str(cluster.ready_servers()) and is_ready(cluster))
            await until(cluster, lambda: len(cluster.servers()) == 1 and not len(runner.queue))
            before = http.writes()
            for key in runner.cache.workspaces():
                await runner.reconcile(key)
            assert http.writes() == before

    asyncio.run(scenario())


def test_conflicts_throttling_and_lost_watches_only_delay_it() -> None:
    async def scenario() -> None:
        cluster = prepared(replicas=1)
        async with running(cluster) as (http, _):
            http.faults.extend([409, 429, 500])
            await until(cluster, lambda: not http.faults)
            http.watches.close()
            await until(cluster, lambda: is_ready(cluster))
            http.watches.close()
            cluster.change_spec(replicas=2)
            await until(cluster, lambda: len(cluster.ready_servers()) == 2)

    asyncio.run(scenario())


def test_what_is_deleted_while_a_watch_is_too_old_is_noticed() -> None:
    """After 410 a watch lists anew, and a list doesn't say what went meanwhile."""

    async def scenario() -> None:
        cluster = prepared(replicas=1)
        async with running(cluster) as (http, runner):
            await until(cluster, lambda: is_ready(cluster) and not len(runner.queue))
            with http.watches.deaf():
                cluster.api.delete("NetworkPolicy", NAMESPACE, NAME)
                cluster.add_node("n3")
            http.page_size = 2
            http.watches.expire()
            await until(cluster, lambda: len(runner.cache.nodes()) == 3)
            await until(cluster, lambda: bool(cluster.api.list("NetworkPolicy", NAMESPACE)))

    asyncio.run(scenario())


def test_what_others_change_or_delete_comes_back() -> None:
    async def scenario() -> None:
        cluster = prepared(replicas=1)
        async with running(cluster):
            await until(cluster, lambda: is_ready(cluster))
            cluster.api.delete("Service", NAMESPACE, NAME)
            cluster.api.update(
                "Deployment", NAMESPACE, NAME, lambda d: d["spec"].update(replicas=5)
            )
            await until(
                cluster,
                lambda: (
                    bool(cluster.api.list("Service", NAMESPACE))
                    and cluster.api.get("Deployment", NAMESPACE, NAME)["spec"]["replicas"] == 1
                ),
            )

    asyncio.run(scenario())


def test_no_annotation_or_finalizer_is_left_on_the_workspace() -> None:
    async def scenario() -> None:
        cluster = prepared(replicas=1)
        async with running(cluster):
            await until(cluster, lambda: is_ready(cluster))
        metadata = cluster.api.get("Workspace", NAMESPACE, NAME)["metadata"]
        assert not metadata.get("finalizers")
        assert not metadata.get("annotations")

    asyncio.run(scenario())


def test_strangers_objects_are_found_although_no_watch_shows_them() -> None:
    async def scenario() -> None:
        cluster = prepared(replicas=1)
        theirs = {
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": NAME, "namespace": NAMESPACE},
            "spec": {"selector": {"app": "other"}, "ports": [{"port": 80}]},
        }  # fmt: skip
        cluster.api.create(theirs)

        def conflict_is_told() -> bool:
            return "NameConflict" in str(
                cluster.api.get("Workspace", NAMESPACE, NAME).get("status")
            )

        async with running(cluster):
            await until(cluster, conflict_is_told)
        assert cluster.api.get("Service", NAMESPACE, NAME)["spec"]["selector"] == {"app": "other"}

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (409, Conflict), (403, AccessDenied), (401, AccessDenied), (429, RateLimited), (500, Unreachable),
        (422, InvalidInput), (404, NotFound),
    ],
)  # fmt: skip
def test_the_servers_refusals_are_our_errors(status: int, error: type[Exception]) -> None:
    async def scenario() -> None:
        cluster = prepared()
        async with HttpApi(cluster.api) as http, http.client() as client:
            # More than are repeated: a first 401 may be of a token that was just renewed, a 429 puts off.
            http.faults.extend([status] * 8)
            with pytest.raises(error):
                await KubernetesApi(client).apply(samples.document())

    asyncio.run(scenario())


def test_a_server_that_is_away_is_unreachable() -> None:
    async def scenario() -> None:
        cluster = prepared()
        async with HttpApi(cluster.api) as http:
            client = http.client()
        async with client:
            with pytest.raises(Unreachable):
                await KubernetesApi(client).get("Node", None, "n1")

    asyncio.run(scenario())


def test_only_the_object_that_was_seen_is_deleted() -> None:
    async def scenario() -> None:
        cluster = prepared()
        async with HttpApi(cluster.api) as http, http.client() as client:
            api = KubernetesApi(client)
            with pytest.raises(Conflict):
                await api.delete(Reference("Workspace", NAME), NAMESPACE, uid="another")
            await api.delete(Reference("Workspace", "gone"), NAMESPACE, uid="any")
            assert cluster.api.list("Workspace")

    asyncio.run(scenario())


def condition_of(cluster: Cluster, kind: str, name: str = NAME) -> Json:
    found = cluster.api.get("Workspace", NAMESPACE, name).get("status", {}).get("conditions", ())
    return next((each for each in found if each["type"] == kind), {})


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (403, "exceeded quota: pods=0"),
        (422, "spec.replicas: Invalid value"),
        (500, "failed calling webhook: connection refused"),
    ],
)
def test_a_write_that_is_refused_stops_neither_the_others_nor_the_status(
    status: int, message: str
) -> None:
    """A quota, a webhook that refuses or is away, or a missing right concerns one object; the user reads why."""

    async def scenario() -> None:
        cluster = prepared(replicas=1)
        async with HttpApi(cluster.api) as http, http.client() as client:
            http.refused["Deployment"] = (status, message)
            runner = make_runner(KubernetesApi(client))
            working = asyncio.create_task(control(client, runner))
            await until(
                cluster, lambda: condition_of(cluster, "Ready").get("reason") == "WriteRefused"
            )
            assert message in condition_of(cluster, "Ready")["message"]
            assert cluster.api.list("Service", NAMESPACE)
            http.refused.clear()
            runner.queue.add((NAMESPACE, NAME))
            await until(cluster, lambda: is_ready(cluster))
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)

    asyncio.run(scenario())


def test_a_workspace_that_hits_a_bug_says_so_and_the_others_are_served() -> None:
    async def scenario() -> None:
        cluster = prepared(replicas=1)
        cluster.api.create(samples.document("odd", namespace=NAMESPACE, replicas=1))
        healed = False

        async def odd_resolve(workspace: Workspace) -> ResolvedImages:
            if workspace.name == "odd" and not healed:
                raise ZeroDivisionError("division by zero")
            return await resolve(workspace)

        async with HttpApi(cluster.api) as http, http.client() as client:
            api = KubernetesApi(client)
            runner = Runner(
                api=api, cache=WatchCache(), resolver=odd_resolve, environment=SystemSettings()
            )
            working = asyncio.create_task(control(client, runner))
            await until(cluster, lambda: is_ready(cluster))
            await until(cluster, lambda: bool(condition_of(cluster, "Ready", "odd")))
            said = condition_of(cluster, "Ready", "odd")
            assert (said["status"], said["reason"]) == ("False", "InternalError")
            assert "ZeroDivisionError: division by zero" in said["message"]
            healed = True
            await until(
                cluster, lambda: condition_of(cluster, "Ready", "odd")["reason"] != "InternalError"
            )
            assert not working.done()
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)

    asyncio.run(scenario())


@settings(max_examples=examples(300))
@given(st.data())
def test_whoever_learns_first_of_a_change_wakes_its_workspace(data: st.DataObject) -> None:
    """Own writes and events arrive in any order, late and twice: each new state wakes once, none goes back."""
    runner = Runner(
        api=cast(KubernetesApi, None), cache=WatchCache(), resolver=resolve,
        environment=SystemSettings(),
    )  # fmt: skip
    labels = {names.WORKSPACE: "w"}
    states = [
        {
            "apiVersion": "apps/v1", "kind": "Deployment", "spec": {"replicas": number},
            "metadata": {"namespace": "n", "name": "d", "labels": labels, "resourceVersion": str(9 + number)},
        }
        for number in range(data.draw(st.integers(1, 6)))
    ]  # fmt: skip
    # Each state comes as the result of our own write, as an event, or both, and events may be delivered twice.
    arrivals = data.draw(
        st.permutations([number for number in range(len(states)) for _ in range(3)])
    )
    newest = -1
    for number in arrivals:
        runner.seen(states[number])
        woken = len(runner.queue) == 1
        assert woken == (number > newest)
        newest = max(newest, number)
        if woken:
            assert asyncio.run(runner.queue.take()) == ("n", "w")
            runner.queue.done(("n", "w"))
        assert [each["spec"]["replicas"] for each in runner.cache.objects(("n", "w"))] == [newest]


def test_manager_and_force_are_said() -> None:
    async def scenario() -> None:
        cluster = prepared()
        async with HttpApi(cluster.api) as http, http.client() as client:
            await KubernetesApi(client).apply(
                {
                    "apiVersion": "v1", "kind": "ServiceAccount",
                    "metadata": {"name": "a", "namespace": NAMESPACE, "labels": {"x": "y"}},
                }
            )  # fmt: skip
        assert set(cluster.api.managers["ServiceAccount", NAMESPACE, "a"]) == {names.MANAGER}

    asyncio.run(scenario())
