"""A node is drained: the only server of a Workspace is replaced before it goes, wherever that is possible."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import examples
from tests.workspace.controller.evictions import evict
from tests.workspace.controller.fakeapi import Conflict
from tests.workspace.controller.simulation import NAME, NAMESPACE, Cluster
from tests.workspace.controller.test_reconcile import (
    Json,
    cluster,
    condition,
    deployment,
    prewarm_pods,
)
from workspace.controller.loops.scaling_loop import find_targets
from workspace.controller.observation.objects import asked_replicas, is_ready
from workspace.controller.observation.observed import Action, Annotate
from workspace.controller.servers.pod_marks import COST
from workspace.document import workspace_of
from workspace.render import names


def cordon(made: Cluster, node: str, *, out: bool = True) -> None:
    made.api.update("Node", "", node, lambda d: d["spec"].update(unschedulable=out))


def drain(made: Cluster, node: str, *, rounds: int = 40) -> int:
    """As `kubectl drain`: cordon, then evict until nothing is left. Returns the fewest ready servers meanwhile."""
    cordon(made, node)
    least = len(made.ready_servers())
    for _ in range(rounds):
        for pod in [each for each in made.servers() if each["spec"].get("nodeName") == node]:
            try:
                evict(made.api, pod)
            except Conflict:
                continue
        least = min(least, len(made.ready_servers()))
        made.reconcile()
        made.step()
        least = min(least, len(made.ready_servers()))
    return least


def check_replacement(made: Cluster) -> None:
    """Drain the node of the only server: one on another node takes its place, without a moment between."""
    (old,) = made.ready_servers()
    assert drain(made, old["spec"]["nodeName"]) >= 1
    made.settle()
    (new,) = made.ready_servers()
    assert new["spec"]["nodeName"] != old["spec"]["nodeName"]
    assert deployment(made)["spec"]["replicas"] == 1
    assert condition(made, "Ready")["status"] == "True"


@pytest.mark.parametrize(
    "spec", [{"replicas": 1}, {"scale": {"min": 1, "max": 3}}, {"scale": {"min": 0, "max": 2}}]
)
def test_the_only_server_goes_after_its_replacement_is_ready(spec: Json) -> None:
    made = cluster("n1", "n2", "n3", **spec)
    made.wanted = 1
    made.settle()
    check_replacement(made)


def test_a_replacement_is_asked_for_and_its_node_warmed_in_one_pass() -> None:
    made = cluster("n1", "n2", replicas=1)
    made.settle()
    (old,) = made.ready_servers()
    cordon(made, old["spec"]["nodeName"])
    made.reconcile()
    assert deployment(made)["spec"]["replicas"] == 2
    assert len(prewarm_pods(made)) == 1


def test_the_scaler_does_not_count_the_replacement() -> None:
    made = cluster("n1", "n2", scale={"min": 1, "max": 3})
    made.wanted = 1
    made.settle()
    (old,) = made.ready_servers()
    cordon(made, old["spec"]["nodeName"])
    made.reconcile()
    assert deployment(made)["spec"]["replicas"] == 2
    workspace = workspace_of(made.api.get("Workspace", NAMESPACE, NAME))
    assert find_targets(workspace, [deployment(made)]).current == 1
    made.wanted = None  # a controller that has just started
    made.settle()
    assert asked_replicas(deployment(made)) == 1


def test_without_another_node_a_drain_is_not_held_up() -> None:
    made = cluster("n1", replicas=1)
    made.settle()
    assert drain(made, "n1") == 0
    assert made.ready_servers() == []


def test_a_drain_that_is_called_off_leaves_the_server_where_it_is() -> None:
    made = cluster("n1", "n2", replicas=1)
    made.settle()
    (old,) = made.ready_servers()
    cordon(made, old["spec"]["nodeName"])
    made.reconcile()
    made.run_deployments()
    assert len(made.servers()) == 2
    cordon(made, old["spec"]["nodeName"], out=False)
    made.settle()
    (left,) = made.ready_servers()
    assert left["metadata"]["uid"] == old["metadata"]["uid"]
    assert COST not in left["metadata"]["annotations"]


@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_servers_leave_a_node_by_themselves_once_their_replacements_are_ready(
    replicas: int,
) -> None:
    made = cluster(*(f"n{n}" for n in range(replicas + 2)), replicas=replicas)
    made.settle()
    gone = made.ready_servers()[0]["spec"]["nodeName"]
    cordon(made, gone)
    for _ in range(20):
        made.reconcile()
        made.step()
        assert len(made.ready_servers()) >= replicas
    made.settle()
    assert len(made.ready_servers()) == replicas
    assert gone not in {pod["spec"]["nodeName"] for pod in made.servers()}


def seen(made: Cluster, change: Callable[[Json], None], *, revision: str | None = None) -> None:
    """Changes what the servers show that aren't ready, or those of one version."""
    for pod in made.servers():
        if not is_ready(pod) or pod["metadata"]["labels"][names.REVISION] == revision:
            made.api.update("Pod", NAMESPACE, pod["metadata"]["name"], change)


def created(pod: Json, at: str) -> None:
    pod["metadata"]["creationTimestamp"] = at


def crashing(pod: Json) -> None:
    ended = {"exitCode": 1, "reason": "Error"}
    container = {"name": "server", "restartCount": 3, "lastState": {"terminated": ended}}
    pod["status"] = {
        "conditions": [{"type": "Ready", "status": "False"}, {"type": "PodScheduled", "status": "True"}],
        "containerStatuses": [container],
    }  # fmt: skip


def unplaced(reason: str) -> Callable[[Json], None]:
    def change(pod: Json) -> None:
        pod["spec"].pop("nodeName", None)
        placed = {"type": "PodScheduled", "status": "False", "reason": reason}
        pod["status"] = {"phase": "Pending", "conditions": [placed]}

    return change


def least(made: Cluster) -> Json:
    spec = made.api.get("PodDisruptionBudget", NAMESPACE, NAME)["spec"]
    return {key: spec[key] for key in ("minAvailable", "maxUnavailable") if key in spec}


PROVISIONED = {"gpu": "L4", "provisioning": {"by": "kueue", "queue": "gpus"}}


def check_patience(made: Cluster, broken: Callable[[Json], None], *, replicas: int) -> None:
    """The budget holds for replacements that something keeps from running, for a while from their creation."""
    seen(made, broken)
    seen(made, lambda pod: created(pod, made.now))
    made.later(590)
    decision = made.reconcile()
    assert least(made) == {"minAvailable": replicas}
    assert decision.wake_after == 10
    made.later(10)
    made.reconcile()
    assert least(made) == {"minAvailable": replicas - 1}
    # By what the API server knows alone: a controller that starts now decides the same.
    assert made.reconcile().actions == ()


@pytest.mark.parametrize("reason", ["SchedulingGated", "Unschedulable"])
@pytest.mark.parametrize("replicas", [1, 3])
def test_a_surge_that_gets_no_node_holds_a_drain_up_for_a_while(replicas: int, reason: str) -> None:
    made = cluster(
        *(f"n{n}" for n in range(replicas + 1)), replicas=replicas, resources=PROVISIONED
    )
    made.settle()
    cordon(made, made.ready_servers()[0]["spec"]["nodeName"])
    made.reconcile()
    made.run_deployments()
    assert len(made.servers()) == replicas + 1
    check_patience(made, unplaced(reason), replicas=replicas)


def test_a_surge_that_no_quota_admits_holds_up_nothing() -> None:
    made = cluster("n1", "n2", "n3", replicas=2)
    made.settle()
    cordon(made, made.ready_servers()[0]["spec"]["nodeName"])
    made.reconcile()
    assert least(made) == {"minAvailable": 2}
    refused = {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota"}
    status = {"observedGeneration": 1 << 30, "conditions": [refused]}
    made.api.update("Deployment", NAMESPACE, NAME, lambda d: d.update(status=status))
    made.reconcile()
    assert least(made) == {"minAvailable": 1}


@pytest.mark.parametrize("replicas", [1, 3])
def test_a_new_version_that_crashes_holds_a_drain_up_for_a_while(replicas: int) -> None:
    made = cluster(*(f"n{n}" for n in range(replicas + 2)), replicas=replicas)
    made.settle()
    old = made.ready_servers()
    made.change_spec(model={"image": "registry.example/team/llama:v2"})
    for _ in range(20):
        made.reconcile()
        if len(made.servers()) > replicas:
            break
        made.step()
        made.run_deployments()
    assert len(made.servers()) == replicas + 1
    cordon(made, old[0]["spec"]["nodeName"])
    made.reconcile()
    check_patience(made, crashing, replicas=replicas)
    # So the drain goes on: the one that is let go comes again elsewhere, of the version that serves.
    evict(made.api, old[0])


def test_several_nodes_are_drained_at_once() -> None:
    """Law: as many as are wanted serve throughout, and the surge is a quarter at most."""
    made = cluster(*(f"n{n}" for n in range(8)), replicas=4)
    made.settle()
    nodes = [str(pod["spec"]["nodeName"]) for pod in made.ready_servers()]
    for node in nodes:
        cordon(made, node)
    for _ in range(40):
        made.reconcile()
        made.step()
        assert len(made.ready_servers()) >= 4
        assert deployment(made)["spec"]["replicas"] <= 5
    made.settle()
    assert len(made.ready_servers()) == 4
    assert not {pod["spec"]["nodeName"] for pod in made.servers()} & set(nodes)


def taint(key: str) -> Callable[[Json], None]:
    return lambda node: node["spec"].update(taints=[{"key": key, "effect": "NoSchedule"}])


def without_gpus(node: Json) -> None:
    """Its device plugin starts again."""
    node["status"]["allocatable"]["nvidia.com/gpu"] = "0"


@pytest.mark.parametrize(
    ("change", "moves"),
    [
        (taint("ours.example/maintenance"), True),
        (taint("node.kubernetes.io/disk-pressure"), False),
        (taint("aws-node-termination-handler/rebalance-recommendation"), False),
        (taint("node.kubernetes.io/not-ready"), False),
        (taint("node.kubernetes.io/unreachable"), False),
        (taint("nvidia.com/gpu"), False),
        (without_gpus, False),
    ],
)
def test_servers_move_for_unknown_taints_and_not_for_what_passes(
    change: Callable[[Json], None], moves: bool
) -> None:
    made = cluster("n1", "n2", replicas=1)
    made.settle()
    (old,) = made.ready_servers()
    made.api.update("Node", "", old["spec"]["nodeName"], change)
    made.settle()
    (left,) = made.ready_servers()
    assert (left["metadata"]["uid"] != old["metadata"]["uid"]) == moves


@given(nodes=st.integers(2, 4), drained=st.lists(st.integers(0, 3), max_size=3))
@settings(max_examples=examples(15), deadline=None)
def test_drains_one_after_another_never_leave_it_without_a_server(
    nodes: int, drained: list[int]
) -> None:
    made = cluster(*(f"n{n}" for n in range(nodes)), replicas=1)
    made.settle()
    for number in drained:
        node = f"n{number % nodes}"
        assert drain(made, node) >= 1
        cordon(made, node, out=False)
        made.settle()
    assert len(made.ready_servers()) == 1


class Unmarkable(Cluster):
    """Patches of pods are refused, by a webhook or a missing right."""

    def _carry_out(self, action: Action) -> None:
        if not isinstance(action, Annotate):
            super()._carry_out(action)


def sizes(made: Cluster, *, rounds: int) -> list[int]:
    """The Deployment's replicas over some rounds."""
    found = []
    for _ in range(rounds):
        made.reconcile()
        made.step()
        found.append(deployment(made)["spec"]["replicas"])
    return found


def test_without_marks_a_replacement_stays_beside_the_server_that_is_to_go() -> None:
    """The surge would end with the youngest server, which is the replacement, and begin again."""
    made = Unmarkable()
    for name in "abc":
        made.add_node(name)
    made.create_workspace(replicas=1)
    made.settle()
    cordon(made, made.ready_servers()[0]["spec"]["nodeName"])
    assert set(sizes(made, rounds=30)[1:]) == {2}
    assert len(made.ready_servers()) == 2


@pytest.mark.parametrize(
    "sign", ["karpenter.sh/disrupted", "aws-node-termination-handler/spot-itn", "unschedulable"]
)
def test_servers_that_tolerate_what_a_node_goes_by_stay(sign: str) -> None:
    """Their replacements could be placed there as well, and would go again."""
    made = Cluster()
    for name in "ab":
        made.add_node(name, gpus=8)
    made.create_workspace(
        replicas=4, resources={"gpu": "L4", "tolerations": [{"operator": "Exists"}]}
    )
    made.settle()
    before = {pod["metadata"]["name"] for pod in made.ready_servers()}
    node = made.ready_servers()[0]["spec"]["nodeName"]
    if sign == "unschedulable":
        cordon(made, node)
    else:
        taints = [{"key": sign, "effect": "NoSchedule"}]
        made.api.update("Node", "", node, lambda d: d["spec"].update(taints=taints))
    assert set(sizes(made, rounds=10)) == {4}
    assert {pod["metadata"]["name"] for pod in made.ready_servers()} == before
    # One that is deleted goes whatever they tolerate: in order, or at once where its end is set.
    stamp = "2026-01-01T00:00:00Z"
    made.api.update("Node", "", node, lambda d: d["metadata"].update(deletionTimestamp=stamp))
    assert (
        max(sizes(made, rounds=3)) > 4
        or {pod["metadata"]["name"] for pod in made.servers()} != before
    )
