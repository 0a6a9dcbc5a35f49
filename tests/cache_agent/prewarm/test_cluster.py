"""An agent's side of a cluster, with the faults that API servers have."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from cache_agent.api.kube.backoff import JitteredBackoff
from cache_agent.api.kube.follower import Follower
from cache_agent.api.kube.kube_client import KubeClient
from cache_agent.api.node_cache import DesiredModelStatus, NextVictim, NodeCache, NodeCacheStatus
from cache_agent.prewarm.cluster.desired_models import (
    MODELS_PATH,
    NODES_PATH,
    ClusterSource,
    NodeLabels,
)
from cache_agent.prewarm.cluster.node_cache_writer import NodeCacheWriter, urgency
from cache_agent.prewarm.cluster.node_owner import NodeOwner
from cache_agent.prewarm.pull_secrets import ClusterSecrets
from tests.cache_agent.nodes import NodeFactory
from tests.cache_agent.prewarm.documents import cached_model
from tests.cache_agent.prewarm.reconciling import Keeping, keeping
from tests.cache_agent.prewarm.test_reconciler import images, run
from tests.servers.process import until
from tests.workspace.controller.fakeapi import FakeApi
from tests.workspace.controller.httpapi import HttpApi

Json = dict[str, Any]
CACHES_PATH = "/apis/weightyard.dev/v1alpha1/nodecaches"
NODE = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "labels": {"gpu": "l4"}}}


def quick() -> JitteredBackoff:
    return JitteredBackoff(lambda: 0.0, first=0.01, most=0.05)


@dataclass
class Cluster:
    """An agent at work in a cluster."""

    http: HttpApi
    at: Keeping
    api: KubeClient
    reporter: NodeCacheWriter

    async def report(self) -> NodeCache:
        found = await self.api.get(f"{CACHES_PATH}/n1")
        head = {"apiVersion": "weightyard.dev/v1alpha1", "kind": "NodeCache"}
        return NodeCache.model_validate({**found, **head})

    async def reported(self, *expected: tuple[str, str]) -> NodeCache:
        """Wait until the server's NodeCache says so of the wishes."""

        def said() -> bool:
            written = self.reporter.written
            return written is not None and [(w.name, w.state) for w in written.desired] == list(
                expected
            )

        try:
            await until(said, what=f"report of {expected}")
        except TimeoutError as error:
            raise AssertionError(f"{error}: {self.reporter.written}") from error
        return await self.report()


@asynccontextmanager
async def a_cluster(
    open_node: NodeFactory, server: FakeApi, **answers: tuple[str, *tuple[int, ...]]
) -> AsyncIterator[Cluster]:
    """A node's agent and its API server, which knows the node. `answers`: verb=(kind, statuses of the next ones)."""
    server.create(NODE)
    http = HttpApi(server)
    http.answers = {(verb, kind): deque(codes) for verb, (kind, *codes) in answers.items()}
    node, labels, changed = open_node(images(2)), NodeLabels(), asyncio.Event()
    async with (
        http,
        KubeClient(http.connection(), role="agent") as api,
        keeping(node, open_node._reader, label_gone=labels.gone, changed=changed.set) as at,
    ):
        wanted = ClusterSource(at.reconciler.want, at.reconciler.trouble, labels)
        reporter = NodeCacheWriter(
            api, NodeOwner(api, "n1"), at.reconciler.status, lambda: at.reconciler.busy, changed,
            lambda event, **fields: at.log.append((event, fields)),
            node.engine.monotonic, backoff=quick(),
        )  # fmt: skip
        follow = partial(Follower, api, backoff=quick())
        tasks = [
            asyncio.create_task(work)
            for work in (
                follow(MODELS_PATH, wanted.models).run(),
                follow(NODES_PATH, wanted.node).run(),
                reporter.run(),
            )
        ]
        try:
            yield Cluster(http, at, api, reporter)
        finally:
            for task in tasks:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task


def reason(cluster: Cluster) -> str | None:
    """What the report says of the watches."""
    written = cluster.reporter.written
    return written.conditions[1].reason if written else None


def model(name: str, image: str, **spec: Any) -> Json:
    return cached_model(name, image, **spec)


def test_what_the_cluster_wants_is_fetched_and_reported(open_node: NodeFactory) -> None:
    async def test() -> None:
        server = FakeApi()
        server.create(model("here", "reg.test/m0:v1", nodeSelector={"gpu": "l4"}))
        server.create(model("elsewhere", "reg.test/m1:v1", nodeSelector={"gpu": "h100"}))
        async with a_cluster(open_node, server) as cluster:
            cache = await cluster.reported(("here", "Ready"))
            assert cache.spec.node == "n1"
            assert cache.status.held == "1/1"
            assert [m.state for m in cache.status.models] == ["Ready"]
            assert (
                cache.status.desired[0].uid
                == server.get("CachedModel", "", "here")["metadata"]["uid"]
            )
            # A node's labels change, and so does what is wanted of it.
            await cluster.api.patch(f"{NODES_PATH}/n1", {"metadata": {"labels": {"gpu": "h100"}}})
            await cluster.reported(("elsewhere", "Ready"))
            await cluster.api.call("DELETE", f"{MODELS_PATH}/elsewhere")
            await cluster.reported()
            writes = cluster.reporter.writes
            cluster.at.reconciler.stale()
            await until(lambda: cluster.at.reconciler._looked is not None, what="a look")
            cluster.reporter.changed.set()
            await asyncio.sleep(0)
            assert cluster.reporter.writes == writes

    run(test())


def test_throttling_conflicts_and_lost_watches_delay_and_lose_nothing(
    open_node: NodeFactory,
) -> None:
    async def test() -> None:
        server = FakeApi()
        server.create(model("a", "reg.test/m0:v1"))
        faults: dict[str, Any] = {
            "list": ("CachedModel", 429), "watch": ("Node", 503), "patch": ("NodeCache", 409, 500),
        }  # fmt: skip
        async with a_cluster(open_node, server, **faults) as cluster:
            cluster.http.watches.expire()
            await cluster.reported(("a", "Ready"))
            cluster.http.watches.expire()
            await until(lambda: reason(cluster) == "Synced", what="a watch that works")
            assert (await cluster.report()).status.desired[0].state == "Ready"
            assert [event for event, _ in cluster.at.log].count("report not written") == 1

    run(test())


def test_a_report_that_another_has_changed_is_written_whole_again(open_node: NodeFactory) -> None:
    """The controller marks the report of a silent agent; the agent that is back has nothing new to say."""

    async def test() -> None:
        server = FakeApi()
        server.create(model("a", "reg.test/m0:v1"))
        async with a_cluster(open_node, server) as cluster:
            before = await cluster.reported(("a", "Ready"))
            writes = cluster.reporter.writes
            marked = {"status": {"conditions": [], "models": []}}
            await cluster.api.patch(f"{CACHES_PATH}/n1/status", marked)
            cluster.reporter.rewrite()
            await until(lambda: cluster.reporter.writes > writes, what="another report")
            after = await cluster.report()
            assert after.status.models == before.status.models
            assert [each.type for each in after.status.conditions] == [
                each.type for each in before.status.conditions
            ]

    run(test())


def test_a_node_that_is_gone_gets_no_report_that_nobody_would_delete(
    open_node: NodeFactory,
) -> None:
    """The API server deletes the report with its Node, while the agent runs on until kubelet stops it."""

    async def test() -> None:
        server = FakeApi()
        server.create(model("a", "reg.test/m0:v1"))
        async with a_cluster(open_node, server) as cluster:
            await cluster.reported(("a", "Ready"))
            server.delete("Node", "", "n1")
            assert server.list("NodeCache") == []
            cluster.reporter.rewrite()
            await until(lambda: bool(cluster.at.log), what="a report that isn't written")
            assert server.list("NodeCache") == []
            uid = server.create(NODE)["metadata"]["uid"]
            await until(lambda: bool(server.list("NodeCache")), what="a report for the new Node")
            assert server.list("NodeCache")[0]["metadata"]["ownerReferences"][0]["uid"] == uid

    run(test())


def test_another_list_has_the_report_written_whole_again() -> None:
    """It may be the list of a server that was restored from a backup, which has an earlier report too."""
    lists: list[str] = []
    source = ClusterSource(
        lambda *_: None, lambda _: None, NodeLabels(lambda _: None), lambda: lists.append("again")
    )
    source.models.replace([])
    assert lists == []
    source.models.replace([])
    assert lists == ["again"]


def test_a_document_that_no_agent_understands_is_told_and_hinders_no_other(
    open_node: NodeFactory,
) -> None:
    async def test() -> None:
        server = FakeApi()
        server.create(model("a", "reg.test/m0:v1"))
        server.create(model("b", "reg.test/m1:v1"))
        # As a server whose definition is newer than the agent.
        server.objects["CachedModel", "", "b"]["spec"]["later"] = "field"
        async with a_cluster(open_node, server) as cluster:
            cache = await cluster.reported(("a", "Ready"))
            (synced,) = [c for c in cache.status.conditions if c.type == "Synced"]
            assert (synced.reason, "b:" in synced.message) == ("WithProblems", True)
            await cluster.api.call("DELETE", f"{MODELS_PATH}/b")
            await until(lambda: reason(cluster) == "Synced", what="an end of the problem")

    run(test())


def test_pull_secrets_are_read_from_the_agent_s_namespace() -> None:
    async def test() -> None:
        server = FakeApi()
        server.create(
            {
                "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "namespace": "wy"},
                "data": {".dockerconfigjson": "eyJhdXRocyI6e319"},
            }
        )  # fmt: skip
        http = HttpApi(server)
        async with http, KubeClient(http.connection(), role="agent") as api:
            assert await ClusterSecrets(api, "wy").read("s") == {
                ".dockerconfigjson": '{"auths":{}}'
            }

    run(test())


def test_only_news_is_written_and_progress_seldom() -> None:
    status = NodeCacheStatus(
        desired=(DesiredModelStatus(name="a", state="Fetching", bytes_done=1),)
    )
    moved = status.model_copy(
        update={"desired": (DesiredModelStatus(name="a", state="Fetching", bytes_done=2),)}
    )
    done = status.model_copy(update={"desired": (DesiredModelStatus(name="a", state="Ready"),)})
    assert urgency(status, status) is None
    waits = [urgency(None, status), urgency(status, done), urgency(status, moved)]
    assert waits == [0.5, 0.5, 5.0]


def test_another_next_victim_is_written_seldom_and_one_that_was_only_used_is_not() -> None:
    first, second = (NextVictim(key=f"sha256:{each}", frees=1) for each in "ab")
    status = NodeCacheStatus(next_victims=(first, second))
    turned = status.model_copy(update={"next_victims": (second, first)})
    used = status.model_copy(
        update={"next_victims": (first.model_copy(update={"uses": 7}), second)}
    )
    assert [urgency(status, each) for each in (turned, used)] == [300.0, None]
