"""The controller as it runs: kopf's watches and real HTTP on one side, a cluster that lives on the other."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest

from cache_agent.api.refusals import Conflict
from modelimage.errors import AccessDenied, InvalidInput, NotFound, RateLimited, Unreachable
from tests.servers import process
from tests.workspace import samples
from tests.workspace.controller.httpapi import HttpApi
from tests.workspace.controller.simulation import NAME, NAMESPACE, Cluster
from workspace.controller.cached_model_controller import CacheRunner
from workspace.controller.handlers import make_registry, watch
from workspace.controller.informers import WORKSPACES, fill
from workspace.controller.kube_api import KubernetesApi
from workspace.controller.object_cache import WatchCache
from workspace.controller.observed import Reference
from workspace.controller.runner import Runner
from workspace.render import names
from workspace.render.kubernetes import SystemSettings
from workspace.render.release import ResolvedImages
from workspace.schema import Workspace

Json = dict[str, Any]


async def resolve(workspace: Workspace) -> ResolvedImages:
    return samples.resolved(workspace, samples.pinned(workspace.spec.model.image or ""))


@contextlib.asynccontextmanager
async def running(cluster: Cluster) -> AsyncIterator[tuple[HttpApi, Runner]]:
    """A controller at work on a cluster."""
    async with HttpApi(cluster.api) as http, aiohttp.ClientSession() as session:
        api = KubernetesApi(session, http.connection)
        runner = Runner(api=api, cache=WatchCache(), resolver=resolve, environment=SystemSettings())
        stop = asyncio.Event()
        registry = make_registry(runner, CacheRunner(api), with_keda=True)
        watching = asyncio.create_task(watch(registry, stop=stop, connection=http.connection))
        working = asyncio.create_task(runner.run())
        try:
            yield http, runner
        finally:
            working.cancel()
            http.break_watches()
            with contextlib.suppress(asyncio.CancelledError):
                await working
            # Cancelled, not stopped: kopf would wait 5 s for all tasks of its loop, the server's among them.
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


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
            http.break_watches()
            await until(cluster, lambda: is_ready(cluster))
            http.break_watches()
            cluster.change_spec(replicas=2)
            await until(cluster, lambda: len(cluster.ready_servers()) == 2)

    asyncio.run(scenario())


def test_what_is_deleted_while_a_watch_is_too_old_is_noticed() -> None:
    """After 410 a watch lists anew, and a list doesn't say what went meanwhile."""

    async def scenario() -> None:
        cluster = prepared(replicas=1)
        async with running(cluster) as (http, runner):
            await until(cluster, lambda: is_ready(cluster) and not len(runner.queue))
            with http.deaf_watches():
                cluster.api.delete("NetworkPolicy", NAMESPACE, NAME)
                cluster.add_node("n3")
            http.expire_watches()
            await until(cluster, lambda: len(runner.cache.nodes()) == 3)
            assert not cluster.api.list("NetworkPolicy", NAMESPACE)
            await fill(runner.api, WORKSPACES, runner)
            await until(cluster, lambda: bool(cluster.api.list("NetworkPolicy", NAMESPACE)))

    asyncio.run(scenario())


def test_a_list_drops_tells_and_leaves_what_the_watches_know() -> None:
    async def scenario() -> None:
        cluster = prepared(replicas=1)
        async with HttpApi(cluster.api) as http, aiohttp.ClientSession() as session:
            api, cache = KubernetesApi(session, http.connection), WatchCache()
            runner = Runner(api=api, cache=cache, resolver=resolve, environment=SystemSettings())
            await fill(api, WORKSPACES, runner)
            assert [node.name for node in cache.nodes()] == ["n1", "n2"]
            newer = {**cluster.api.get("Node", "", "n1"), "spec": {"unschedulable": True}}
            runner.seen(newer)
            cluster.remove_node("n2")
            cluster.add_node("n3")
            await fill(api, WORKSPACES, runner)
            assert {node.name: node.usable for node in cache.nodes()} == {"n1": False, "n3": True}
            cluster.api.delete("Workspace", NAMESPACE, NAME)
            await fill(api, WORKSPACES, runner)
            assert cache.workspaces() == []
            await fill(api, ["NodeCache", "ScaledObject"], runner)

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
        async with HttpApi(cluster.api) as http, aiohttp.ClientSession() as session:
            http.faults.append(status)
            with pytest.raises(error):
                await KubernetesApi(session, http.connection).apply(samples.document())

    asyncio.run(scenario())


def test_a_server_that_is_away_is_unreachable() -> None:
    async def scenario() -> None:
        cluster = prepared()
        async with HttpApi(cluster.api) as http:
            connection = http.connection()
        async with aiohttp.ClientSession() as session:
            with pytest.raises(Unreachable):
                await KubernetesApi(session, lambda: connection).groups()

    asyncio.run(scenario())


def test_only_the_object_that_was_seen_is_deleted() -> None:
    async def scenario() -> None:
        cluster = prepared()
        async with HttpApi(cluster.api) as http, aiohttp.ClientSession() as session:
            api = KubernetesApi(session, http.connection)
            with pytest.raises(Conflict):
                await api.delete(Reference("Workspace", NAME), NAMESPACE, uid="another")
            await api.delete(Reference("Workspace", "gone"), NAMESPACE, uid="any")
            assert cluster.api.list("Workspace")

    asyncio.run(scenario())


def test_manager_and_force_are_said() -> None:
    async def scenario() -> None:
        cluster = prepared()
        async with HttpApi(cluster.api) as http, aiohttp.ClientSession() as session:
            await KubernetesApi(session, http.connection).apply(
                {
                    "apiVersion": "v1", "kind": "ServiceAccount",
                    "metadata": {"name": "a", "namespace": NAMESPACE, "labels": {"x": "y"}},
                }
            )  # fmt: skip
        assert set(cluster.api.managers["ServiceAccount", NAMESPACE, "a"]) == {names.MANAGER}

    asyncio.run(scenario())
