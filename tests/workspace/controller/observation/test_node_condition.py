"""The condition of Nodes that says whether the models pinned to them are verified, and when it is written."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cache_agent.api.cached_model import CachedModel
from cache_agent.api.heartbeat import NO_HEARTBEAT
from cache_agent.api.node_cache import NodeCache
from tests.workspace.controller import caches
from tests.workspace.controller.fakeapi import FakeApi
from tests.workspace.controller.httpapi import HttpApi
from workspace.controller.cluster.kube_api import KubernetesApi
from workspace.controller.node_caches.cache_view import CACHE, MODEL, NODE
from workspace.controller.node_caches.cached_model_controller import CacheRunner
from workspace.controller.observation.node_condition import (
    NodeCondition,
    to_apply,
    wanted_condition,
)
from workspace.controller.observation.node_labels import has_started

Json = dict[str, Any]
LATER = "2026-02-01T00:00:00Z"


def pinned(name: str, **spec: Any) -> CachedModel:
    return CachedModel.parse(caches.cached_model(name, pin=True, **spec))


def cache(*ready: str, waiting: tuple[str, ...] = (), **conditions: str) -> NodeCache:
    reports = (*map(caches.report, ready), *(caches.report(each, "Waiting") for each in waiting))
    return NodeCache.model_validate(caches.node_cache("n1", desired=reports, **conditions))


@pytest.mark.parametrize(
    ("report", "status", "says"),
    [
        (cache("a", "b"), "True", "verified"),
        (cache("a", waiting=("b",), PinnedReady="False"), "False", "b."),
        (cache("a"), "False", "b."),
        (cache(Synced="False"), "False", "isn't ready"),
        (cache("a", "b", Ready="False"), "False", "isn't ready"),
    ],
)
def test_it_follows_what_takes_the_startup_taint_away(
    report: NodeCache, status: str, says: str
) -> None:
    models = [pinned("a"), pinned("b"), pinned("elsewhere", nodeSelector={"zone": "b"})]
    found = wanted_condition(report, models, {})
    assert found is not None
    assert found.status == status
    assert says in found.message
    assert (status == "True") == has_started(report, models, {})


def test_many_missing_models_are_counted_and_a_node_without_agent_is_not_judged() -> None:
    found = wanted_condition(cache(), [pinned(f"m{number}") for number in range(9)], {})
    assert found is not None
    assert found.message.endswith("m4 and 4 more.")
    assert wanted_condition(None, [pinned("a")], {}) is None


def test_a_transition_is_a_change_of_the_status_alone() -> None:
    told = NodeCondition("False", "Missing", "a", caches.NOW)

    def since(wanted: NodeCondition, before: NodeCondition | None) -> str:
        (found,) = to_apply("n1", wanted, before, LATER)["status"]["conditions"]
        return str(found["lastTransitionTime"])

    assert since(NodeCondition("False", "Missing", "b"), told) == caches.NOW
    assert since(NodeCondition("True", "Held", "c"), told) == LATER
    assert since(told, None) == LATER


class Site:
    """A node, a pinned model, and a controller that writes the condition when it is told to."""

    def __init__(self, http: HttpApi, api: KubernetesApi) -> None:
        self.http, self.store = http, http.api
        self.runner = CacheRunner(api, node_conditions=True)
        self.store.create(caches.node("n1"))
        self.store.create(caches.cached_model("chat", pin=True))

    async def settle(self) -> Json | None:
        """What watches and workers do; gives the node's condition."""
        for kind in (NODE, CACHE, MODEL):
            for each in self.store.list(kind):
                self.runner.seen(each)
        while len(self.runner.queue):
            key = await self.runner.queue.take()
            await self.runner.reconcile(key)
            self.runner.queue.done(key)
        found = self.store.get(NODE, "", "n1")["status"]["conditions"]
        ours = [each for each in found if each["type"] == "cache.weightyard.dev/PinnedReady"]
        # Others' conditions stay.
        assert {"type": "Ready", "status": "True"} in found
        return ours[0] if ours else None

    def report(self, state: str, **conditions: str) -> None:
        document = caches.node_cache("n1", desired=(caches.report("chat", state),), **conditions)
        if self.store.list(CACHE):
            self.store.update(
                CACHE, "", "n1", lambda found: found.update(status=document["status"])
            )
        else:
            self.store.create(document)


def test_it_is_written_when_something_has_changed_and_goes_unknown_with_a_silent_agent() -> None:
    async def scenario() -> None:
        async with HttpApi(FakeApi()) as http, http.client() as client:
            site = Site(http, KubernetesApi(client))
            assert await site.settle() is None
            site.report("Fetching", PinnedReady="False")
            first = await site.settle()
            assert first is not None
            assert (first["status"], first["reason"]) == ("False", "Missing")
            site.report("Ready")
            found = await site.settle()
            assert found is not None
            assert found["status"] == "True"
            writes = http.writes()
            site.report("Ready")
            assert await site.settle() == found
            assert http.writes() == writes
            # What is pinned later counts, although the node has long started.
            site.store.create(caches.cached_model("code", pin=True))
            found = await site.settle()
            assert found is not None
            assert (found["status"], found["message"]) == ("False", "Not verified here yet: code.")
            site.store.update(CACHE, "", "n1", _silence)
            found = await site.settle()
            assert found is not None
            assert (found["status"], found["reason"]) == ("Unknown", NO_HEARTBEAT)
            # Without an agent nothing is said of the node any more.
            site.store.delete(CACHE, "", "n1")
            site.runner.seen({"kind": CACHE, "metadata": {"name": "n1"}}, deleted=True)
            assert await site.settle() is None

    asyncio.run(scenario())


def _silence(document: Json) -> None:
    for each in document["status"]["conditions"]:
        each.update(status="Unknown", reason=NO_HEARTBEAT)
