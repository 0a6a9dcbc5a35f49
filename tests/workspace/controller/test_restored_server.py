"""An API server whose etcd was restored from a backup: its versions are lower than those that were seen."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import examples
from tests.workspace.controller.simulation import NAME, NAMESPACE
from tests.workspace.controller.test_running import is_ready, prepared, running, until
from workspace.controller.cluster.object_cache import WatchCache
from workspace.controller.cluster.watches import CACHES, OPTIONAL, WORKSPACES
from workspace.render import names

Json = dict[str, Any]


def test_a_controller_goes_on_after_the_server_was_restored() -> None:
    async def scenario() -> None:
        cluster = prepared(replicas=1)
        async with running(cluster) as (http, runner):
            await until(cluster, lambda: is_ready(cluster) and not len(runner.queue))
            backup = cluster.api.copied()
            cluster.change_spec(replicas=2)
            await until(cluster, lambda: len(cluster.ready_servers()) == 2 and is_ready(cluster))
            kinds = {*WORKSPACES, *CACHES}
            with http.restored(backup) as asked:
                # Every watch has noticed the outage: of each kind that the cluster has, of definitions, and of Events.
                served = kinds - (set(OPTIONAL) - {"ScaledObject"})
                await until(cluster, lambda: len(asked) == len(served) + 2)
            assert len(cluster.servers()) == 1
            cluster.change_spec(replicas=2)
            await until(cluster, lambda: len(cluster.ready_servers()) == 2 and is_ready(cluster))
            cluster.change_spec(replicas=0)
            await until(cluster, lambda: cluster.servers() == [] and not len(runner.queue))

    asyncio.run(scenario())


def a_pod(name: str, version: int, content: int) -> Json:
    return {
        "kind": "Pod", "apiVersion": "v1", "spec": {"content": content},
        "metadata": {
            "name": name, "namespace": NAMESPACE, "resourceVersion": str(version), "labels": {names.WORKSPACE: NAME},
        },
    }  # fmt: skip


PODS = st.sampled_from(["a", "b"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), PODS),
        st.tuples(st.just("delete"), PODS),
        st.tuples(st.sampled_from(["backup", "restore", "late"]), st.just("")),
    ),
    max_size=30,
)


@given(STEPS)
@settings(max_examples=examples(300), deadline=None)
def test_the_cache_holds_what_the_server_has_whatever_versions_it_counts(
    steps: list[tuple[str, str]],
) -> None:
    """Law: events may be late, but never undo newer ones; and after a list nothing that was seen before matters."""
    cache, latest, content = WatchCache(), 1, 0
    objects: dict[str, Json] = {}
    backup = (dict(objects), latest)
    events: list[Json] = []
    for what, name in steps:
        latest, content = latest + 1, content + 1
        if what == "write":
            objects[name] = a_pod(name, latest, content)
            events.append(objects[name])
            cache.put(objects[name])
        elif what == "delete" and name in objects:
            del objects[name]
            # As a list that was made meanwhile does, and a watch would with the deletion's version.
            cache.drop(a_pod(name, latest, content))
            events = [each for each in events if each["metadata"]["name"] != name]
        elif what == "late":
            for each in events:
                cache.put(each)
        elif what == "backup":
            backup = (dict(objects), latest)
        elif what == "restore":
            objects, latest = dict(backup[0]), backup[1]
            events = list(objects.values())
            cache.listed("Pod")
            for (_, gone), document in cache.known("Pod").items():
                if gone not in objects:
                    cache.drop(document)
            for each in objects.values():
                cache.put(each)
        held = {
            each["metadata"]["name"]: each["spec"]["content"]
            for each in cache.objects((NAMESPACE, NAME))
        }
        assert held == {each: document["spec"]["content"] for each, document in objects.items()}
