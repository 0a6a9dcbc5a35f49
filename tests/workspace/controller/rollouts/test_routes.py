"""A route that shares requests between two versions, in a simulated cluster: weights, drains, what others write."""

from __future__ import annotations

from typing import Any

import pytest

from tests.workspace import samples
from tests.workspace.controller.fakeapi import Conflict
from tests.workspace.controller.rollouts.test_canary import V2, compared, count, ready, status
from tests.workspace.controller.simulation import NAME, NAMESPACE, Cluster
from workspace.analysis import Outcome
from workspace.controller.observation.objects import has_labels
from workspace.controller.observation.observed import GATEWAY_GROUP, POOL_GROUP
from workspace.render import names
from workspace.rollout_status import RolloutPhase

Json = dict[str, Any]
NEW = names.candidate(NAME)
ROUTE = {
    "parentRefs": [{"name": "public", "namespace": "gateways"}],
    "hostnames": ["chat.example.com"],
}
STEPS = [{"weight": 10}, {"pause": {}}, {"weight": 60}, {"pause": {}}]


def cluster_of(
    *, nodes: int = 8, replicas: int = 3, route: Json | None = None, **rollout: Any
) -> Cluster:
    """A cluster with a Gateway that serves version 1 and was just asked for version 2."""
    made = Cluster(gateway_groups=frozenset({GATEWAY_GROUP, POOL_GROUP}))
    for number in range(nodes):
        made.add_node(f"n{number}")
    made.create_workspace(replicas=replicas, rollout=rollout, route=route or ROUTE)
    made.settle()
    made.change_spec(model={"image": V2})
    made.settle()
    return made


def route(cluster: Cluster) -> Json:
    return cluster.api.get("HTTPRoute", NAMESPACE, NAME)


def weights(cluster: Cluster) -> dict[str, int]:
    (rule,) = route(cluster)["spec"]["rules"]
    return {each["name"]: each["weight"] for each in rule["backendRefs"]}


def routed(cluster: Cluster) -> Json:
    found = cluster.api.get("Workspace", NAMESPACE, NAME)["status"]["conditions"]
    return next(each for each in found if each["type"] == "Routed")


def resume(cluster: Cluster) -> None:
    cluster.annotate(resume=status(cluster).token)
    cluster.settle()


def test_weights_follow_the_steps_and_the_new_version_drains_the_old_one() -> None:
    cluster = cluster_of(strategy="canary", steps=STEPS)
    # One server carries a tenth of three servers' requests, which by numbers alone would be a quarter.
    assert weights(cluster) == {NAME: 90, NEW: 10}
    assert (count(cluster, samples.IMAGE), count(cluster, V2)) == (3, 1)
    assert (status(cluster).attained, routed(cluster)["status"]) == (10, "True")
    resume(cluster)
    assert weights(cluster) == {NAME: 40, NEW: 60}
    assert (count(cluster, samples.IMAGE), count(cluster, V2)) == (3, 2)
    cluster.annotate(promote=status(cluster).version)
    cluster.settle()
    assert status(cluster).phase is RolloutPhase.COMPLETED
    assert (count(cluster, samples.IMAGE), count(cluster, V2)) == (0, 3)
    assert weights(cluster) == {NAME: 100, NEW: 0}
    assert ready(cluster)["status"] == "True"


def test_servers_without_a_weight_go_once_they_are_idle() -> None:
    cluster = cluster_of(strategy="blueGreen", keepSeconds=0)
    before = status(cluster)
    # All requests went over, and the old version's servers have some left.
    assert weights(cluster) == {NAME: 0, NEW: 100}
    assert (before.phase, cluster.decide().draining) == (RolloutPhase.PROMOTING, before.stable)
    assert (count(cluster, samples.IMAGE), count(cluster, V2)) == (3, 3)
    assert cluster.decide().wake_after == 125
    cluster.idle = before.stable
    cluster.settle()
    assert status(cluster).phase is RolloutPhase.COMPLETED
    assert (count(cluster, samples.IMAGE), count(cluster, V2)) == (0, 3)
    assert weights(cluster) == {NAME: 100, NEW: 0}


def test_servers_that_never_get_idle_go_after_their_time() -> None:
    cluster = cluster_of(strategy="blueGreen", keepSeconds=0)
    cluster.later(125)
    cluster.settle()
    assert status(cluster).phase is RolloutPhase.COMPLETED
    assert (count(cluster, samples.IMAGE), count(cluster, V2)) == (0, 3)


def test_on_the_way_back_weights_come_first_and_servers_once_they_are_idle() -> None:
    cluster = cluster_of(strategy="canary", steps=[{"weight": 60}, {"analysis": {"seconds": 60}}])
    assert weights(cluster) == {NAME: 40, NEW: 60}
    compared(cluster, Outcome.FAILED, 15)
    decision = cluster.reconcile()
    # In one pass: what decides is what writes.
    assert [each.document["kind"] for each in decision.actions if hasattr(each, "document")] == [
        "HTTPRoute"
    ]
    assert weights(cluster) == {NAME: 100, NEW: 0}
    cluster.settle()
    assert (status(cluster).phase, status(cluster).reason) == (RolloutPhase.FAILED, "Regressed")
    assert (count(cluster, samples.IMAGE), count(cluster, V2)) == (3, 2)
    cluster.idle = status(cluster).version
    cluster.settle()
    assert (count(cluster, samples.IMAGE), count(cluster, V2)) == (3, 0)


def test_without_room_the_weight_is_what_the_servers_carry() -> None:
    cluster = cluster_of(nodes=3, strategy="canary", steps=[{"weight": 50}, {"pause": {}}])
    assert status(cluster).in_place
    # 2 of 3 servers are new: as many as half of the requests need.
    assert (count(cluster, samples.IMAGE), count(cluster, V2)) == (1, 2)
    assert weights(cluster) == {NAME: 50, NEW: 50}
    cluster.annotate(promote=status(cluster).version)
    cluster.settle()
    assert status(cluster).phase is RolloutPhase.COMPLETED
    assert (count(cluster, V2), weights(cluster)) == (3, {NAME: 100, NEW: 0})


@pytest.mark.parametrize("replicas", [1, 3])
def test_two_versions_and_no_place_more_are_enough(replicas: int) -> None:
    cluster = cluster_of(nodes=2 * replicas, replicas=replicas, strategy="blueGreen", keepSeconds=0)
    cluster.later(125)
    cluster.settle()
    assert status(cluster).phase is RolloutPhase.COMPLETED
    assert (count(cluster, samples.IMAGE), count(cluster, V2)) == (0, replicas)


def test_what_others_write_in_the_route_stays() -> None:
    cluster = cluster_of(strategy="canary", steps=STEPS)
    theirs = {
        "matches": [{"path": {"type": "PathPrefix", "value": "/old"}}],
        "filters": [{"type": "RequestRedirect", "requestRedirect": {"hostname": "old.example.com"}}],
    }  # fmt: skip
    timeouts = {"request": "600s"}
    mirror = {"name": "mirror", "port": 80, "group": "", "kind": "Service", "weight": 0}

    def edit(document: Json) -> None:
        rules = document["spec"]["rules"]
        rules[0] |= {"timeouts": timeouts}
        rules[0]["backendRefs"].append(mirror)
        rules[0]["backendRefs"][0]["weight"] = 7  # not theirs
        rules.insert(0, theirs)

    cluster.api.update("HTTPRoute", NAMESPACE, NAME, edit)
    cluster.settle()
    first, second = route(cluster)["spec"]["rules"]
    assert first == theirs
    assert second["timeouts"] == timeouts
    assert second["backendRefs"][2] == mirror
    assert [each["weight"] for each in second["backendRefs"]] == [90, 10, 0]


def test_a_route_that_changed_meanwhile_is_not_overwritten() -> None:
    cluster = cluster_of(strategy="canary", steps=STEPS)
    cluster.annotate(resume=status(cluster).token)
    while not (decision := cluster.decide()).actions or "HTTPRoute" not in str(decision.actions):
        cluster.reconcile()
        cluster.step()
    (write,) = [each.document for each in decision.actions if each.document["kind"] == "HTTPRoute"]  # type: ignore[union-attr]
    cluster.api.update(
        "HTTPRoute", NAMESPACE, NAME, lambda document: document["spec"]["rules"].append({})
    )
    with pytest.raises(Conflict):
        cluster.api.apply(write, manager=names.MANAGER)


def test_a_gateway_that_refuses_keeps_the_rollout_from_going_on_and_is_told() -> None:
    cluster = cluster_of(strategy="canary", steps=STEPS)
    cluster.refusal = "no such listener"
    resume(cluster)
    assert (routed(cluster)["status"], routed(cluster)["reason"]) == ("False", "RouteNotAccepted")
    assert "gateways/public" in routed(cluster)["message"]
    assert "no such listener" in routed(cluster)["message"]
    assert ready(cluster)["reason"] == "RouteNotAccepted"
    found = cluster.api.get("Workspace", NAMESPACE, NAME)["status"]["route"]
    assert (found["wanted"], found["written"], found["accepted"]) == (60, 60, "False")
    assert (status(cluster).step, status(cluster).attained) == (2, 10)


def test_without_a_gateway_api_the_replicas_share_and_a_condition_says_so() -> None:
    cluster = cluster_of(strategy="canary", steps=STEPS)
    cluster.gateway_groups = frozenset()
    cluster.api.delete("HTTPRoute", NAMESPACE, NAME)
    cluster.settle()
    assert (routed(cluster)["reason"], status(cluster).attained) == ("GatewayApiMissing", 25)
    assert ("Service", NAMESPACE, NEW) not in cluster.api.objects
    cluster.gateway_groups = frozenset({GATEWAY_GROUP})
    cluster.settle()
    assert weights(cluster) == {NAME: 90, NEW: 10}
    assert routed(cluster)["status"] == "True"


def test_pools_are_routed_to_where_the_spec_names_pickers() -> None:
    pools = {"endpointPicker": "chat-epp", "newEndpointPicker": "chat-new-epp"}
    cluster = cluster_of(strategy="canary", steps=STEPS, route={**ROUTE, "inferencePools": pools})
    assert weights(cluster) == {NAME: 90, NEW: 10}
    (rule,) = route(cluster)["spec"]["rules"]
    assert {each["kind"] for each in rule["backendRefs"]} == {"InferencePool"}
    old, new = (cluster.api.get("InferencePool", NAMESPACE, name)["spec"] for name in (NAME, NEW))
    assert old["endpointPickerRef"]["name"] == "chat-epp"
    assert new["endpointPickerRef"]["name"] == "chat-new-epp"
    selected = [
        [pod for pod in cluster.ready_servers() if has_labels(pod, each["selector"]["matchLabels"])]
        for each in (old, new)
    ]
    assert [len(each) for each in selected] == [3, 1]
    cluster.gateway_groups = frozenset({GATEWAY_GROUP})
    cluster.settle()
    assert "InferencePool" in routed(cluster)["message"]
    assert ("HTTPRoute", NAMESPACE, NAME) in cluster.api.objects


def test_a_route_of_somebody_else_is_left_alone() -> None:
    made = Cluster(gateway_groups=frozenset({GATEWAY_GROUP}))
    made.add_node("n1")
    theirs = {
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": NAME, "namespace": NAMESPACE},
        "spec": {"rules": [{"backendRefs": [{"name": "other", "port": 80}]}], "parentRefs": [{"name": "g"}]},
    }  # fmt: skip
    made.api.create(theirs)
    made.create_workspace(replicas=1, route=ROUTE)
    made.settle()
    assert route(made)["spec"]["rules"][0]["backendRefs"][0]["name"] == "other"
    assert routed(made)["reason"] == "NameConflict"
    assert count(made, samples.IMAGE) == 1


def test_a_third_version_gets_requests_only_once_the_second_has_none() -> None:
    cluster = cluster_of(strategy="canary", steps=STEPS)
    cluster.change_spec(model={"image": "registry.example/team/llama:v3"})
    while count(cluster, V2):
        cluster.reconcile()
        assert weights(cluster)[NEW] == 0 or count(cluster, V2)
        cluster.step()
    cluster.settle()
    assert weights(cluster) == {NAME: 90, NEW: 10}
    assert count(cluster, "registry.example/team/llama:v3") == 1


def test_without_a_route_in_the_spec_the_route_goes() -> None:
    cluster = cluster_of(strategy="canary", steps=STEPS)
    cluster.change_spec(route=None)
    cluster.settle()
    assert ("HTTPRoute", NAMESPACE, NAME) not in cluster.api.objects
    assert status(cluster).attained == 25
    conditions = cluster.api.get("Workspace", NAMESPACE, NAME)["status"]["conditions"]
    assert "Routed" not in {each["type"] for each in conditions}
