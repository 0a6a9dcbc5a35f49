"""Agents that fall silent are noticed, and nobody else is taken for one."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cache_agent.api.heartbeat import (
    HEARTBEAT_LABEL,
    NO_HEARTBEAT,
    RENEW_SECONDS,
    SILENT_SECONDS,
    lease_name,
)
from cache_agent.api.shared_names import node_label
from tests.servers.process import until
from tests.workspace.controller import caches
from tests.workspace.controller.fakeapi import FakeApi
from tests.workspace.controller.httpapi import HttpApi
from workspace.controller.cluster.kube_api import KubernetesApi
from workspace.controller.cluster.object_cache import WatchCache
from workspace.controller.node_caches.cache_view import CACHE, MODEL, NODE
from workspace.controller.node_caches.cached_model_controller import CacheRunner
from workspace.controller.node_caches.heartbeats import PERIOD, HeartbeatLoop, Heartbeats
from workspace.controller.reasons import Reason

Json = dict[str, Any]
SPACE = "weightyard-system"
IMAGE = "registry.example/m:1"


# Who is silent


@given(st.lists(st.floats(0.0, SILENT_SECONDS - PERIOD - 1), max_size=40), st.floats(0.0, PERIOD))
def test_an_agent_that_renews_in_time_is_never_silent(pauses: list[float], offset: float) -> None:
    """Whatever the pauses between two renewals are, and when the lists fall between them."""
    heartbeats, renewals = Heartbeats(), [0.0]
    for pause in pauses:
        renewals.append(renewals[-1] + pause)
    now = offset
    while now <= renewals[-1]:
        version = sum(each <= now for each in renewals)
        assert heartbeats.observe({"n1": str(version)}, now) == frozenset()
        now += PERIOD


@given(st.floats(0.0, PERIOD))
def test_an_agent_that_ends_is_silent_soon(offset: float) -> None:
    heartbeats, now = Heartbeats(), offset
    while not heartbeats.observe({"dead": "1", "alive": str(now)}, now):
        now += PERIOD
    assert heartbeats.observe({"dead": "1", "alive": "new"}, now) == {"dead"}
    assert now - offset <= SILENT_SECONDS + PERIOD


def test_after_a_time_without_lists_everybody_gets_the_whole_time_again() -> None:
    """The API server was away: no agent could renew."""
    heartbeats = Heartbeats()
    heartbeats.observe({"n1": "1"}, 0.0)
    later = 10 * SILENT_SECONDS
    assert heartbeats.observe({"n1": "1"}, later) == frozenset()
    for step in range(1, int(SILENT_SECONDS / PERIOD)):
        assert heartbeats.observe({"n1": "1"}, later + step * PERIOD) == frozenset()
    assert heartbeats.observe({"n1": "1"}, later + SILENT_SECONDS) == {"n1"}


def test_a_node_without_a_lease_is_not_judged() -> None:
    heartbeats = Heartbeats()
    for step in range(10):
        assert heartbeats.observe({}, step * PERIOD) == frozenset()


# What follows from it


def beat(api: FakeApi, node: str, namespace: str = SPACE) -> None:
    """An agent renews its Lease."""
    lease = {
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": lease_name(node), "namespace": namespace, "labels": {HEARTBEAT_LABEL: "agent"}},
        "spec": {"holderIdentity": node, "renewTime": "0"},
    }  # fmt: skip
    if ("Lease", namespace, lease_name(node)) not in api.objects:
        api.create(lease)
        return
    version = api.get("Lease", namespace, lease_name(node))["metadata"]["resourceVersion"]
    api.update(
        "Lease", namespace, lease_name(node), lambda found: found["spec"].update(renewTime=version)
    )


class Site:
    """Two nodes that hold a model, a leader's Lease, and a controller that looks when it is told to."""

    def __init__(self, api: KubernetesApi, store: FakeApi) -> None:
        self.store = store
        self.seconds = 0.0
        self.runner = CacheRunner(api)
        self.loop = HeartbeatLoop(api, self.runner, SPACE, monotonic=lambda: self.seconds)
        store.create(
            {
                "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                "metadata": {"name": "weightyard-controller", "namespace": SPACE}, "spec": {},
            }
        )  # fmt: skip
        store.create(caches.cached_model("chat", IMAGE, nodeSelector={}))
        for name in ("n1", "n2"):
            store.create(caches.node(name))
            beat(store, name)
            report = (caches.report("chat"),)
            store.create(caches.node_cache(name, desired=report, models=(caches.held(IMAGE),)))

    async def settle(self) -> None:
        """What watches and workers do."""
        for kind in (NODE, CACHE, MODEL):
            for each in self.store.list(kind):
                self.runner.seen(each)
        for key in ((NODE, "n1"), (NODE, "n2"), (MODEL, "chat")):
            await self.runner.reconcile(key)

    async def pass_time(self, *alive: str, seconds: float) -> None:
        end = self.seconds + seconds
        while self.seconds < end:
            for each in alive:
                beat(self.store, each)
            await self.loop.look()
            self.seconds += PERIOD

    def conditions(self, name: str) -> set[tuple[str, str]]:
        found = self.store.get(CACHE, "", name)["status"]["conditions"]
        return {(each["status"], each["reason"]) for each in found}

    def labels(self, name: str) -> set[str]:
        return set(self.store.get(NODE, "", name)["metadata"].get("labels") or {})

    def ready(self) -> tuple[str, str]:
        found = self.store.get(MODEL, "", "chat")["status"]
        return found["held"], found["conditions"][0]["message"]


def test_a_silent_agents_node_loses_its_labels_and_counts_as_failed_until_it_is_back() -> None:
    label = node_label(caches.key_of(IMAGE))

    async def scenario() -> None:
        store = FakeApi()
        async with HttpApi(store) as http, http.client() as client:
            site = Site(KubernetesApi(client), store)
            await site.settle()
            assert site.labels("n1") == site.labels("n2") == {label}
            assert site.ready()[0] == "2/2"
            before = store.get(CACHE, "", "n2")
            await site.pass_time("n1", seconds=SILENT_SECONDS + 2 * PERIOD)
            assert site.conditions("n2") == {("Unknown", NO_HEARTBEAT)}
            assert site.conditions("n1") == {("True", "Told")}
            await site.settle()
            assert (site.labels("n1"), site.labels("n2")) == ({label}, set())
            held, message = site.ready()
            assert held == "1/2"
            assert "n2: the agent of this node is silent" in message
            # Workspaces count no model on it either, though its report still names one.
            seen = WatchCache()
            for each in (store.get(NODE, "", "n2"), store.get(CACHE, "", "n2")):
                seen.put(each)
            assert [each.held for each in seen.nodes()] == [frozenset()]
            # At rest nothing is written again and again.
            writes = http.writes()
            await site.pass_time("n1", seconds=SILENT_SECONDS)
            assert http.writes() == writes
            # The agent is back: it renews, and writes its whole report again.
            store.update(CACHE, "", "n2", lambda found: found.update(status=before["status"]))
            await site.pass_time("n1", "n2", seconds=2 * SILENT_SECONDS)
            await site.settle()
            assert site.labels("n2") == {label}
            assert site.ready()[0] == "2/2"

    asyncio.run(scenario())


def test_an_agent_that_comes_back_while_it_is_marked_keeps_its_report() -> None:
    """Its report is newer than the one that the controller has seen, so the mark is refused."""

    async def scenario() -> None:
        store = FakeApi()
        async with HttpApi(store) as http, http.client() as client:
            site = Site(KubernetesApi(client), store)
            await site.settle()
            await site.pass_time("n1", seconds=SILENT_SECONDS)
            store.update(CACHE, "", "n2", lambda found: found["status"].update(held="1/1"))
            await site.loop.look()
            assert site.conditions("n2") == {("True", "Told")}

    asyncio.run(scenario())


def test_one_refused_mark_hinders_no_other() -> None:
    async def scenario() -> None:
        store = FakeApi()
        async with HttpApi(store) as http, http.client() as client:
            site = Site(KubernetesApi(client), store)
            await site.settle()
            await site.pass_time(seconds=SILENT_SECONDS)
            http.faults.append(403)
            await site.loop.look()
            assert site.conditions("n1") == {("True", "Told")}
            assert site.conditions("n2") == {("Unknown", NO_HEARTBEAT)}
            await site.loop.look()
            assert site.conditions("n1") == {("Unknown", NO_HEARTBEAT)}

    asyncio.run(scenario())


def test_the_loop_goes_on_after_a_list_that_was_refused() -> None:
    async def scenario() -> None:
        store = FakeApi()
        async with HttpApi(store) as http, http.client() as client:
            site = Site(KubernetesApi(client), store)
            asked: list[str] = []
            http.callers.allows = lambda request: asked.append(request.path) is not None  # type: ignore[func-returns-value]
            working = asyncio.create_task(site.loop.run())
            await until(lambda: asked, what="a list")
            assert not working.done()
            working.cancel()
            with suppress(asyncio.CancelledError):
                await working

    asyncio.run(scenario())


def test_a_lost_renewal_is_no_silence() -> None:
    assert SILENT_SECONDS >= 3 * RENEW_SECONDS


def test_both_sides_have_the_same_word_for_it() -> None:
    assert Reason.NO_HEARTBEAT == NO_HEARTBEAT
