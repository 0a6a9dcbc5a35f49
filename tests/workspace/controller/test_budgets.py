"""Evictions while servers of several kinds run: each kind has a budget of its own, and each server always one."""

from __future__ import annotations

from typing import Any

import pytest

from tests.workspace.controller.evictions import evict, may_evict, selecting
from tests.workspace.controller.fakeapi import Conflict
from tests.workspace.controller.simulation import NAME, NAMESPACE, Cluster
from tests.workspace.controller.test_capacity_floor import SPOT, V2, resources
from tests.workspace.controller.test_drain import cordon, crashing, drain, seen
from workspace.analysis import AnalysisResult, Judgement, Outcome
from workspace.controller.observation.objects import has_labels, is_candidate, node_of
from workspace.controller.observation.observed import Action
from workspace.controller.rollouts.rollout_plan import window_of
from workspace.controller.rollouts.rollout_view import rollout_before
from workspace.render import names

Json = dict[str, Any]
STRATEGIES: tuple[Json, ...] = (
    {},
    {"strategy": "canary", "steps": [{"weight": 50}, {"pause": {}}]},
    {"strategy": "blueGreen", "steps": [{"pause": {}}]},
)


class Watched(Cluster):
    """After every single write each ready server has a budget."""

    def _carry_out(self, step: Action | Json) -> None:
        super()._carry_out(step)
        for pod in self.ready_servers():
            assert selecting(self.api, pod), f"{pod['metadata']['name']} after {step}"


def cluster(*, floor: int, replicas: int, rollout: Json) -> Watched:
    made = Watched()
    for number in range(8):
        made.add_node(f"s{number}")
        made.api.update("Node", "", f"s{number}", lambda d: d["metadata"].update(labels=SPOT))
        made.add_node(f"d{number}")
    made.create_workspace(replicas=replicas, resources=resources(floor), rollout=rollout)
    made.settle()
    return made


def serving(made: Cluster, version: str) -> list[Json]:
    """The ready servers of one version."""
    return [
        pod for pod in made.ready_servers() if pod["metadata"]["labels"][names.REVISION] == version
    ]


@pytest.mark.parametrize("floor", [0, 1])
@pytest.mark.parametrize("replicas", [1, 3])
@pytest.mark.parametrize("rollout", STRATEGIES)
def test_servers_of_a_new_version_let_none_go_of_the_one_that_serves(
    rollout: Json, replicas: int, floor: int
) -> None:
    """Law: whatever runs beside, as many servers of the version that gets the requests stay ready as are wanted."""
    made = cluster(floor=floor, replicas=replicas, rollout=rollout)
    (version,) = {pod["metadata"]["labels"][names.REVISION] for pod in made.ready_servers()}
    if rollout:
        made.change_spec(model=V2)
        made.settle()
        assert len(made.ready_servers()) > replicas
    before = serving(made, version)
    assert len(before) == replicas
    for pod in before:
        cordon(made, str(node_of(pod)))
    made.reconcile()
    assert [pod for pod in before if may_evict(made.api, pod)] == []
    for pod in before:
        drain(made, str(node_of(pod)))
        assert len(serving(made, version)) >= replicas
    made.settle()
    moved = {node_of(pod) for pod in serving(made, version)}
    assert not moved & {node_of(pod) for pod in before}


@pytest.mark.parametrize("rollout", STRATEGIES)
def test_each_server_has_one_budget_from_the_first_version_to_the_next(rollout: Json) -> None:
    made = cluster(floor=1, replicas=3, rollout=rollout)
    for floor in (0, 2, 1):
        made.change_spec(resources=resources(floor))
        made.settle()
        assert [len(selecting(made.api, pod)) for pod in made.servers()] == [1] * 3
    made.change_spec(model=V2)
    made.settle()
    assert {len(selecting(made.api, pod)) for pod in made.servers()} == {1}
    made.change_spec(rollout={})
    made.settle()
    assert [len(selecting(made.api, pod)) for pod in made.servers()] == [1] * 3
    budgets = {each["metadata"]["name"] for each in made.api.list("PodDisruptionBudget", NAMESPACE)}
    assert budgets == {NAME, names.on_demand(NAME)}


@pytest.mark.parametrize("replicas", [1, 3])
def test_servers_that_crash_hold_no_drain_up(replicas: int) -> None:
    made = cluster(floor=0, replicas=replicas, rollout={})
    nodes = {str(node_of(pod)) for pod in made.ready_servers()}
    (version,) = {pod["metadata"]["labels"][names.REVISION] for pod in made.ready_servers()}
    seen(made, crashing, revision=version)
    for node in nodes:
        cordon(made, node)
    made.reconcile()
    assert all(may_evict(made.api, pod) for pod in made.servers())


def test_trouble_with_spot_capacity_leaves_the_floor_its_budget() -> None:
    made = cluster(floor=1, replicas=2, rollout={})
    (pod,) = [each for each in made.ready_servers() if str(node_of(each)).startswith("d")]
    cordon(made, str(node_of(pod)))
    refused = {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota"}
    status = {"observedGeneration": 1 << 30, "conditions": [refused]}
    made.api.update("Deployment", NAMESPACE, NAME, lambda d: d.update(status=status))
    made.reconcile()
    assert not may_evict(made.api, pod)
    made.api.update(
        "Deployment", NAMESPACE, names.on_demand(NAME), lambda d: d.update(status=status)
    )
    made.reconcile()
    assert may_evict(made.api, pod)


# Without a route: at 90 percent the new version's servers stand in for some of the others.
MOVING: tuple[Json, ...] = (
    {
        "strategy": "canary",
        "steps": [{"weight": 25}, {"pause": {"seconds": 10}}, {"weight": 90}, {"analysis": {"seconds": 5}}],
    },
    {"strategy": "blueGreen", "keepSeconds": 30},
)  # fmt: skip


def answering(made: Cluster) -> list[Json]:
    """The ready servers behind the Workspace's Service."""
    selector = made.api.get("Service", NAMESPACE, NAME)["spec"]["selector"]
    return [pod for pod in made.ready_servers() if has_labels(pod, selector)]


def moved_on(made: Cluster) -> None:
    """A pass, what the cluster does then, and some seconds: analyses pass."""
    state = rollout_before(made.api.get("Workspace", NAMESPACE, NAME))
    if state is not None and state.is_open:
        made.analysis = AnalysisResult(window_of(state), 1e6, Judgement(Outcome.PASSED, "no worse"))
    made.reconcile()
    made.step()
    made.later(5)


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [1, 3])
@pytest.mark.parametrize("rollout", MOVING)
@pytest.mark.parametrize("which", ["new", "both"])
def test_a_drain_in_any_moment_of_a_rollout_leaves_as_many_servers_as_are_wanted(
    which: str, rollout: Json, replicas: int
) -> None:
    """Law: from the pass that sees a drain, no eviction leaves fewer ready servers behind the Service than wanted."""
    drained = 0
    # Every other moment: those of one replica and those of three make up for each other.
    for moment in range(replicas == 1, 14, 2):
        made = cluster(floor=moment // 2 % 2, replicas=replicas, rollout=rollout)
        made.change_spec(model=V2)
        for _ in range(moment):
            moved_on(made)
        new = [pod for pod in made.ready_servers() if is_candidate(pod)][:1]
        old = [pod for pod in made.ready_servers() if not is_candidate(pod)][:1]
        nodes = {str(node_of(pod)) for pod in (new if which == "new" else new + old)}
        for node in nodes:
            cordon(made, node)
        for _ in range(14):
            moved_on(made)
            for pod in made.servers():
                if node_of(pod) in nodes:
                    try:
                        evict(made.api, pod)
                    except Conflict:
                        continue
                    drained += 1
                    assert len(answering(made)) >= replicas, f"moment {moment}"
        made.settle()
        assert not {node_of(pod) for pod in made.servers()} & nodes, f"moment {moment}"
    assert drained
