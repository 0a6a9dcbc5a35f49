"""Warm spares: nodes that hold the model beside the servers', never more than asked for, and made where none stands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import examples
from tests.workspace.controller.simulation import NAME, NAMESPACE, Cluster
from tests.workspace.controller.test_drain import cordon
from tests.workspace.controller.test_reconcile import condition, deployment, prewarm_pods
from workspace.controller.cluster.object_cache import WatchCache
from workspace.controller.observation.objects import asked_replicas, is_mounted, node_of
from workspace.controller.observation.observed import Apply
from workspace.controller.reconcile import reconcile
from workspace.render import names
from workspace.render.spare_nodes import API, KIND

Json = dict[str, Any]
BUFFERS = frozenset({API.partition("/")[0]})
MODELS = [{"image": f"registry.example/team/llama:v{number}"} for number in (1, 2)]


def resources(spares: int, **more: Any) -> Json:
    return {"gpu": "L4", "provisioning": {"warmSpares": spares, **more}}


def cluster(
    *nodes: str, spares: int = 1, labels: bool = True, buffers: bool = False, **spec: Any
) -> Cluster:
    made = Cluster(labels_nodes=labels, gateway_groups=BUFFERS if buffers else frozenset())
    for name in nodes:
        made.add_node(name)
    made.create_workspace(**{"replicas": 1, "resources": resources(spares)} | spec)
    return made


def holders(made: Cluster) -> set[str | None]:
    """Where pre-warm pods stay that have their volumes."""
    return {node_of(pod) for pod in prewarm_pods(made) if is_mounted(pod)}


def asked_node(pod: Json) -> str:
    """The node that a pre-warm pod is for."""
    affinity = pod["spec"]["affinity"]["nodeAffinity"]
    (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    return str(term["matchFields"][0]["values"][0])


def serving(made: Cluster) -> set[str | None]:
    return set(map(node_of, made.ready_servers()))


@pytest.mark.parametrize("labels", [True, False])
def test_a_spare_holds_the_model_beside_the_server_and_takes_the_next_server_at_once(
    labels: bool,
) -> None:
    made = cluster("n1", "n2", "n3", labels=labels)
    made.settle()
    (spare,) = holders(made)
    assert spare not in serving(made)
    assert condition(made, "Cached")["reason"] == "Warm"
    assert condition(made, "Ready")["status"] == "True"
    made.change_spec(replicas=2)
    made.reconcile()
    # It needn't wait: the node that it will get is warm.
    assert deployment(made)["spec"]["replicas"] == 2
    made.settle()
    assert spare in serving(made)
    assert len(holders(made)) == 1
    assert not holders(made) & serving(made)


def test_a_spare_that_is_cordoned_is_replaced_and_one_that_is_not_asked_for_any_more_goes() -> None:
    made = cluster("n1", "n2", "n3")
    made.settle()
    (spare,) = holders(made)
    assert spare is not None
    cordon(made, spare)
    made.settle()
    (other,) = holders(made)
    assert other != spare
    made.change_spec(resources={"gpu": "L4"})
    made.settle()
    assert prewarm_pods(made) == []


def test_spares_stay_while_nothing_serves_but_requests_may_come_and_go_with_a_stopped_server() -> (
    None
):
    made = cluster("n1", "n2", replicas=None, scale={"min": 0, "max": 2}, buffers=True)
    made.wanted = 0
    made.settle()
    assert made.ready_servers() == []
    # One for the first request's server, and the spare.
    assert len(holders(made)) == 1
    assert made.api.list(KIND, NAMESPACE)
    made.change_spec(scale=None, replicas=0)
    made.settle()
    assert prewarm_pods(made) == []
    assert made.api.list(KIND, NAMESPACE) == []
    assert made.api.list("PodTemplate", NAMESPACE) == []


def test_spares_hold_the_version_that_serves_until_another_does() -> None:
    made = cluster("n1", "n2", "n3")
    made.settle()
    (spare,) = prewarm_pods(made)
    old = spare["metadata"]["labels"][names.REVISION]
    made.change_spec(model=MODELS[1])
    made.reconcile()
    versions = {
        pod["metadata"]["labels"][names.REVISION]
        for pod in prewarm_pods(made)
        if node_of(pod) == node_of(spare)
    }
    assert old in versions
    made.settle()
    (spare,) = prewarm_pods(made)
    assert spare["metadata"]["labels"][names.REVISION] != old


def test_without_buffers_a_missing_node_is_told_and_the_server_is_ready_all_the_same() -> None:
    made = cluster("n1", spares=2)
    made.settle()
    assert made.api.list("PodTemplate", NAMESPACE) == []
    told = condition(made, "Cached")
    assert (told["status"], told["reason"]) == ("True", "CapacityBufferMissing")
    assert "0 of 2 warm spares" in told["message"]
    assert condition(made, "Ready")["status"] == "True"


def test_who_asks_for_no_spares_hears_nothing_of_buffers() -> None:
    made = cluster("n1", spares=0)
    made.settle()
    assert condition(made, "Cached")["reason"] == "Warm"


def test_nodes_for_spares_are_asked_for_and_warmed_once_they_are_there() -> None:
    made = cluster("n1", spares=1, buffers=True)
    made.settle()
    (buffer,) = made.api.list(KIND, NAMESPACE)
    assert buffer["spec"] == {"podTemplateRef": {"name": f"{NAME}--spares"}, "replicas": 1}
    assert condition(made, "Cached")["reason"] == "SparesMissing"
    made.add_node("n2")
    made.settle()
    assert holders(made) == {"n2"}
    assert condition(made, "Cached")["reason"] == "Warm"


def test_a_node_without_anothers_server_is_taken_before_one_with() -> None:
    made = cluster("n1", "n2", "n3", "n4")
    made.settle()
    (spare,) = holders(made)
    taken = {"n1", "n2", "n3", "n4"} - serving(made) - {spare}
    # The spare itself is lost, and of those that are left all but one serve others.
    assert spare is not None
    made.remove_node(spare)
    for left in sorted(taken):
        observed = replace(made.observe(), occupied=frozenset(taken - {left}))
        pods = [
            action.document
            for action in reconcile(observed).actions
            if isinstance(action, Apply) and action.document["kind"] == "Pod"
        ]
        assert [asked_node(pod) for pod in pods] == [left]


def test_the_cache_knows_where_servers_are() -> None:
    made = cluster("n1", spares=0)
    made.settle()
    (server,) = made.servers()
    cache = WatchCache()
    cache.put(server)
    assert cache.occupied() == {"n1"}
    ended = {**server, "status": {"phase": "Failed"}, "metadata": {**server["metadata"]}}
    ended["metadata"].pop("resourceVersion")
    cache.put(ended)
    assert cache.occupied() == set()
    cache.put(server)
    cache.drop(server)
    assert cache.occupied() == set()


EVENTS: dict[str, Callable[[Cluster, int], object]] = {
    "add node": lambda made, number: (
        f"n{number}" in made.held or made.add_node(f"n{number}", gpus=1 + number % 2)
    ),
    "lose node": lambda made, number: (
        f"n{number}" not in made.held or made.remove_node(f"n{number}")
    ),
    "cordon": lambda made, number: f"n{number}" not in made.held or cordon(made, f"n{number}"),
    "uncordon": lambda made, number: (
        f"n{number}" not in made.held or cordon(made, f"n{number}", out=False)
    ),
    "scale": lambda made, number: made.change_spec(replicas=number % 4),
    "spares": lambda made, number: made.change_spec(resources=resources(number % 3)),
    "model": lambda made, number: made.change_spec(model=MODELS[number % 2]),
    "schedule": lambda made, _: made.schedule(),
    "kubelets": lambda made, _: made.run_kubelets(),
    "deployments": lambda made, _: made.run_deployments(),
    "agents": lambda made, _: made.label_nodes(),
    "reconcile": lambda made, _: made.reconcile(),
    "settle": lambda made, _: made.settle(),
}


@settings(max_examples=examples(20))
@given(events=st.lists(st.tuples(st.sampled_from(sorted(EVENTS)), st.integers(0, 5)), max_size=25))
def test_no_more_nodes_are_asked_to_hold_a_version_than_replicas_and_spares(
    events: list[tuple[str, int]],
) -> None:
    made = cluster("n0", "n1", "n2", "n3", spares=1)
    made.settle()
    for what, number in events:
        EVENTS[what](made, number)
        made.reconcile()
        check_bound(made)
    made.settle()
    check_bound(made)
    before = list(made.api.writes)
    assert made.reconcile().actions == ()
    assert made.api.writes == before


def check_bound(made: Cluster) -> None:
    spec = made.api.get("Workspace", NAMESPACE, NAME)["spec"]
    spares = spec["resources"]["provisioning"]["warmSpares"]
    replicas = max(spec["replicas"], asked_replicas(deployment(made)))
    pods = prewarm_pods(made)
    for version in {pod["metadata"]["labels"][names.REVISION] for pod in pods}:

        def is_of(pod: Json, version: str = version) -> bool:
            return bool(pod["metadata"]["labels"][names.REVISION] == version)

        warming = [pod for pod in pods if is_of(pod)]
        running = {node_of(pod) for pod in made.servers() if is_of(pod) and is_mounted(pod)}
        asked = set(map(asked_node, warming))
        assert len(asked) == len(warming), "one pod a node"
        assert len(asked | running) <= max(1, replicas, len(running)) + spares
