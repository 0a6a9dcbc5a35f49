"""Rollouts while people change other things: replicas, steps, the strategy, the room, and what isn't theirs."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from tests.workspace import samples
from tests.workspace.controller.rollouts import test_canary
from tests.workspace.controller.rollouts.test_canary import (
    V2,
    compared,
    count,
    ready,
    status,
)
from tests.workspace.controller.simulation import NAME, NAMESPACE, Cluster, setting
from tests.workspace.controller.test_drain import cordon
from workspace.analysis import Outcome
from workspace.controller.observation.objects import has_labels, is_candidate, node_of
from workspace.controller.observation.observed import GATEWAY_GROUP
from workspace.controller.rollouts.rollout_view import rollout_before
from workspace.render import names
from workspace.rollout_status import RolloutPhase

Json = dict[str, Any]
PAUSED_AT_25 = [{"weight": 25}, {"pause": {}}]
PAUSED_AT_90 = [{"weight": 90}, {"pause": {}}]
cluster_of = partial(test_canary.cluster_of, labels_nodes=True)


def fewest_behind(cluster: Cluster, *, without: str = "") -> int:
    """The fewest ready servers that the Service had until all came to rest, beside those of a node."""
    found = []
    for _ in range(40):
        for happens in (cluster.reconcile, cluster.step):
            happens()
            selector = cluster.api.get("Service", NAMESPACE, NAME)["spec"]["selector"]
            there = [pod for pod in cluster.ready_servers() if node_of(pod) != without]
            found.append(sum(has_labels(pod, selector) for pod in there))
    return min(found)


def test_the_version_that_serves_grows_during_a_rollout() -> None:
    """Its model comes to more nodes, too, however long the rollout pauses."""
    cluster = cluster_of(nodes=8, replicas=2, strategy="canary", steps=PAUSED_AT_25)
    cluster.change_spec(replicas=5)
    cluster.settle()
    assert (count(cluster, samples.IMAGE), count(cluster, V2)) == (5, 2)
    assert ready(cluster)["reason"] == "Paused"


def test_one_spare_node_is_room_enough_to_take_over() -> None:
    cluster = cluster_of(nodes=5, replicas=4, strategy="canary", steps=PAUSED_AT_25)
    cluster.annotate(promote=status(cluster).version)
    assert fewest_behind(cluster) >= 4
    assert status(cluster).phase is RolloutPhase.COMPLETED
    assert (count(cluster, samples.IMAGE), count(cluster, V2)) == (0, 4)


def test_a_version_promoted_before_it_found_room_replaces_one_server_after_the_other() -> None:
    cluster = Cluster(labels_nodes=True)
    for number in range(4):
        cluster.add_node(f"n{number}")
    cluster.create_workspace(replicas=4, rollout={"strategy": "canary", "steps": PAUSED_AT_25})
    cluster.settle()
    cluster.change_spec(model={"image": V2})
    cluster.reconcile()
    cluster.annotate(promote=status(cluster).version)
    assert fewest_behind(cluster) >= 3
    assert status(cluster).phase is RolloutPhase.COMPLETED
    assert (count(cluster, samples.IMAGE), count(cluster, V2)) == (0, 4)


def test_a_version_that_was_taken_back_is_not_tried_because_the_deployment_was_deleted() -> None:
    cluster = cluster_of(nodes=8, replicas=3, strategy="canary", steps=PAUSED_AT_25)
    compared(cluster, Outcome.FAILED, 15)
    cluster.settle()
    cluster.api.delete("Deployment", NAMESPACE, NAME)
    cluster.settle()
    assert status(cluster).phase is RolloutPhase.FAILED
    assert (count(cluster, samples.IMAGE), count(cluster, V2)) == (3, 0)


def test_a_rollout_goes_on_though_the_deployment_was_deleted() -> None:
    cluster = cluster_of(nodes=8, replicas=3, strategy="canary", steps=PAUSED_AT_25)
    cluster.api.delete("Deployment", NAMESPACE, NAME)
    cluster.settle()
    assert (status(cluster).phase, status(cluster).step) == (RolloutPhase.PAUSED, 1)
    assert (count(cluster, samples.IMAGE), count(cluster, V2)) == (3, 1)


def test_an_edited_weight_holds_at_once() -> None:
    steps = [{"weight": 50}, {"pause": {}}, {"weight": 60}, {"pause": {}}]
    cluster = cluster_of(nodes=8, replicas=4, strategy="canary", steps=steps)
    assert status(cluster).weight == 50
    cluster.change_spec(rollout={"strategy": "canary", "steps": [{"weight": 20}, *steps[1:]]})
    cluster.settle()
    assert (status(cluster).weight, status(cluster).step) == (20, 1)
    assert (count(cluster, samples.IMAGE), count(cluster, V2)) == (4, 1)


def test_another_strategy_tries_the_version_from_its_own_first_step() -> None:
    """No step number of one strategy counts as one of another's."""
    steps = [{"weight": 10}, {"pause": {"seconds": 9}}, {"weight": 20}, {"pause": {}}]
    cluster = cluster_of(nodes=8, replicas=4, strategy="canary", steps=steps)
    cluster.later(9)
    cluster.settle()
    assert status(cluster).step == 3
    cluster.change_spec(rollout={"strategy": "blueGreen", "steps": [{"pause": {}}]})
    cluster.settle()
    assert (status(cluster).phase, status(cluster).step) == (RolloutPhase.PAUSED, 1)
    assert (status(cluster).weight, status(cluster).attained) == (0, 0)
    assert (count(cluster, samples.IMAGE), count(cluster, V2)) == (4, 4)


def test_a_version_that_had_all_requests_becomes_a_canary() -> None:
    cluster = cluster_of(nodes=8, replicas=3, strategy="blueGreen", keepSeconds=3000)
    assert status(cluster).weight == 100
    cluster.change_spec(rollout={"strategy": "canary", "steps": PAUSED_AT_25})
    assert fewest_behind(cluster) >= 3
    assert (status(cluster).phase, status(cluster).step) == (RolloutPhase.PAUSED, 1)
    assert (count(cluster, samples.IMAGE), count(cluster, V2)) == (3, 1)


@pytest.mark.parametrize(
    "spec",
    [
        {"rollout": None},
        {"rollout": {"strategy": "external"}},
        {"model": {"image": samples.IMAGE}},
        {"model": {"image": "registry.example/team/llama:v3"}},
        {"model": {"image": "registry.example/team/llama:v3"}, "rollout": {"strategy": "canary"}},
    ],
)
def test_servers_that_stand_in_for_others_stay_until_those_are_ready(spec: Json) -> None:
    cluster = cluster_of(nodes=9, replicas=4, strategy="canary", steps=PAUSED_AT_90)
    assert (count(cluster, samples.IMAGE), count(cluster, V2)) == (1, 4)
    cluster.change_spec(**spec)
    assert fewest_behind(cluster) >= 4
    assert len(cluster.ready_servers()) >= 4
    if "image" not in str(spec):
        assert ("Deployment", NAMESPACE, names.candidate(NAME)) not in cluster.api.objects


def test_another_program_takes_over_a_route_and_no_servers_are_left() -> None:
    cluster = Cluster(labels_nodes=True, gateway_groups=frozenset({GATEWAY_GROUP}))
    for number in range(8):
        cluster.add_node(f"n{number}")
    rollout = {"strategy": "canary", "steps": PAUSED_AT_25}
    cluster.create_workspace(
        replicas=3, rollout=rollout, route={"parentRefs": [{"name": "public"}]}
    )
    cluster.settle()
    cluster.change_spec(model={"image": V2})
    cluster.settle()
    assert (count(cluster, samples.IMAGE), count(cluster, V2)) == (3, 1)
    cluster.change_spec(rollout={"strategy": "external"})
    assert fewest_behind(cluster) >= 3
    assert (count(cluster, samples.IMAGE), count(cluster, V2)) == (0, 3)


def test_servers_that_stand_in_do_not_keep_the_room_of_those_that_they_stand_in_for() -> None:
    cluster = cluster_of(nodes=4, replicas=4, strategy="canary", steps=PAUSED_AT_25)
    assert (count(cluster, samples.IMAGE), count(cluster, V2)) == (3, 1)
    cluster.change_spec(model={"image": samples.IMAGE})
    cluster.settle()
    assert (count(cluster, samples.IMAGE), count(cluster, V2)) == (4, 0)
    assert rollout_before(cluster.api.get("Workspace", NAMESPACE, NAME)) is None


def late(cluster: Cluster, *, seconds: int) -> None:
    """The new version's Deployment missed its deadline; its servers got nodes `seconds` ago, and aren't ready."""
    ended = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}
    made = cluster.api.get("Deployment", NAMESPACE, names.candidate(NAME))
    generation = made["metadata"]["generation"]
    told = {"observedGeneration": generation, "conditions": [ended]}
    cluster.api.update("Deployment", NAMESPACE, names.candidate(NAME), setting(status=told))
    placed = {"type": "PodScheduled", "status": "True", "lastTransitionTime": cluster.now}
    for pod in cluster.servers():
        if pod["metadata"]["labels"].get(names.TRACK) == names.CANDIDATE:
            name = pod["metadata"]["name"]
            waits = {"phase": "Pending", "conditions": [placed]}
            cluster.api.update("Pod", NAMESPACE, name, setting(status=waits))
    cluster.later(seconds)


def test_a_version_that_waited_for_room_has_its_time_to_start_from_then() -> None:
    """A Deployment counts its deadline from its creation, nodes or no nodes."""
    cluster = cluster_of(nodes=8, replicas=3, strategy="canary", steps=PAUSED_AT_25)
    made = cluster.api.get("Deployment", NAMESPACE, names.candidate(NAME))
    limit = made["spec"]["progressDeadlineSeconds"]
    late(cluster, seconds=limit - 1)
    cluster.reconcile()
    assert status(cluster).is_open
    cluster.later(1)
    cluster.reconcile()
    assert (status(cluster).phase, status(cluster).reason) == (
        RolloutPhase.FAILED, "NewVersionFailed",
    )  # fmt: skip


def test_faults_of_the_version_before_are_not_those_of_the_next() -> None:
    cluster = cluster_of(nodes=8, replicas=3, strategy="canary", steps=PAUSED_AT_25)
    late(cluster, seconds=86_400)
    for pod in cluster.servers():
        if pod["metadata"]["labels"].get(names.TRACK) == names.CANDIDATE:
            ended = {"terminated": {"exitCode": 1, "reason": "Error", "message": "no such option"}}
            told = {
                "containerStatuses": [
                    {"name": "server", "restartCount": 3, "state": {}, "lastState": ended}
                ]
            }
            name = pod["metadata"]["name"]
            cluster.api.update("Pod", NAMESPACE, name, setting(status=told))
    cluster.change_spec(model={"image": "registry.example/team/llama:v3"})
    cluster.settle()
    assert (status(cluster).phase, status(cluster).step) == (RolloutPhase.PAUSED, 1)


@pytest.mark.parametrize("edit", [{}, {"model": {"image": "registry.example/team/llama:v3"}}])
def test_a_drained_server_makes_up_for_none_that_stood_in_for_others(edit: Json) -> None:
    cluster = cluster_of(nodes=8, replicas=2, strategy="canary", steps=PAUSED_AT_90)
    assert (count(cluster, samples.IMAGE), count(cluster, V2)) == (1, 2)
    (own,) = (pod for pod in cluster.ready_servers() if not is_candidate(pod))
    cordon(cluster, str(node_of(own)))
    cluster.reconcile()
    cluster.step()
    cluster.change_spec(**{"model": {"image": samples.IMAGE}, "rollout": {}} | edit)
    assert fewest_behind(cluster, without=str(node_of(own))) >= 2
