"""`capacity.onDemandMinimum`: so many of the replicas run on capacity that isn't spot, whatever else happens."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.examples import examples
from tests.workspace import samples
from tests.workspace.controller.evictions import selects
from tests.workspace.controller.simulation import NAME, NAMESPACE, Cluster
from tests.workspace.controller.test_reconcile import condition
from workspace.controller.loops.scaling_loop import find_targets
from workspace.controller.observation.revisions import revision_name
from workspace.document import workspace_of
from workspace.render import names
from workspace.render.cluster import render_kubernetes
from workspace.render.llmd import render_llmd
from workspace.render.routing import SystemSettings

Json = dict[str, Any]
SPOT = {"karpenter.sh/capacity-type": "spot"}
V2 = {"image": "registry.example/team/llama:v2"}


def resources(floor: int | None = None, **capacity: Any) -> Json:
    more = {} if floor is None else {"onDemandMinimum": floor}
    return {"gpu": "L4", "provisioning": {"capacity": {**capacity, **more}}}


def cluster(*, spot: int, others: int, floor: int, **spec: Any) -> Cluster:
    made = Cluster()
    for number in range(spot):
        made.add_node(f"s{number}")
        made.api.update("Node", "", f"s{number}", lambda d: d["metadata"].update(labels=SPOT))
    for number in range(others):
        made.add_node(f"d{number}")
    made.create_workspace(resources=resources(floor), **spec)
    return made


def deployed(made: Cluster) -> dict[str, int]:
    """The Deployments of servers with their replicas."""
    found = made.api.list("Deployment", NAMESPACE)
    return {
        each["metadata"]["name"].removeprefix(NAME): each["spec"]["replicas"]
        for each in found
        if each["metadata"]["name"] != names.activator(NAME)
    }


def off_spot(made: Cluster, version: str = "") -> int:
    """The ready servers on nodes that aren't spot, of one version if given."""
    return sum(
        not pod["spec"]["nodeName"].startswith("s")
        for pod in made.ready_servers()
        if pod["metadata"]["labels"][names.REVISION].startswith(version)
    )


@pytest.mark.parametrize(("replicas", "floor"), [(1, 1), (3, 1), (3, 2), (2, 5), (3, 0), (0, 1)])
def test_so_many_replicas_run_elsewhere(replicas: int, floor: int) -> None:
    made = cluster(spot=4, others=3, floor=floor, replicas=replicas)
    made.settle()
    apart = min(floor, replicas)
    assert deployed(made).get("--on-demand", 0) == apart
    assert deployed(made)[""] == replicas - apart
    assert len(made.ready_servers()) == replicas
    assert off_spot(made) >= apart
    status = made.api.get("Workspace", NAMESPACE, NAME)["status"]
    assert (status["replicas"], status["readyReplicas"]) == (replicas, replicas)
    assert condition(made, "Ready")["status"] == str(replicas > 0)


def test_all_servers_are_behind_the_service_a_budget_and_the_scaler() -> None:
    made = cluster(spot=3, others=2, floor=1, scale={"min": 3, "max": 4})
    made.wanted = 3
    made.settle()
    service = made.api.get("Service", NAMESPACE, NAME)["spec"]["selector"]
    assert len(made.api.list("Pod", NAMESPACE, service)) == 3
    budgets = made.api.list("PodDisruptionBudget", NAMESPACE)
    for pod in made.servers():
        found = [
            each for each in budgets if selects(each["spec"]["selector"], pod["metadata"]["labels"])
        ]
        assert len(found) == 1  # of two, an eviction is an error
    workspace = workspace_of(made.api.get("Workspace", NAMESPACE, NAME))
    assert find_targets(workspace, made.api.list("Deployment", NAMESPACE)).current == 3


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"provisioning": {"warmSpares": 1}}),
        ({"provisioning": {"by": "karpenter"}}, {"provisioning": {"by": "karpenter", "warmSpares": 2}}),
        ({"provisioning": {"warmSpares": 1}}, {"provisioning": {"warmSpares": 3, "by": "none"}}),
    ],
)  # fmt: skip
def test_warm_spares_are_no_part_of_the_version(before: Json, after: Json) -> None:
    """Neither their number nor that there are some: an edit restarts nothing."""
    plain, spared = (samples.workspace(resources={"gpu": "L4", **each}) for each in (before, after))
    assert revision_name(plain) == revision_name(spared)


def test_the_floor_is_no_part_of_the_version() -> None:
    """An edit of it restarts nothing."""
    plain, floored = (samples.workspace(resources=resources(floor)) for floor in (None, 2))
    assert revision_name(plain) == revision_name(floored)
    assert revision_name(plain) != revision_name(samples.workspace())


@given(
    course=st.lists(
        st.one_of(
            st.tuples(st.just("floor"), st.integers(0, 3)),
            st.tuples(st.just("step"), st.integers(1, 3)),
        ),
        max_size=6,
    )
)
@settings(max_examples=examples(20), deadline=None)
def test_edits_of_the_floor_interrupt_nothing(course: list[tuple[str, int]]) -> None:
    """Law: with room, and whatever the floor was and becomes, no wanted server is missing for a moment."""
    made = cluster(spot=4, others=4, floor=1, replicas=3)
    made.settle()
    kept = made.ready_servers()
    floor = 1
    for what, number in course:
        if what == "floor":
            floor = number
            made.change_spec(resources=resources(floor))
        for _ in range(number if what == "step" else 0):
            made.reconcile()
            made.step()
            assert len(made.ready_servers()) >= 3
    made.settle()
    assert len(made.ready_servers()) == 3
    assert off_spot(made) >= floor
    assert {pod["metadata"]["labels"][names.REVISION] for pod in made.ready_servers()} == {
        kept[0]["metadata"]["labels"][names.REVISION]
    }


@pytest.mark.parametrize("strategy", ["rolling", "canary", "blueGreen"])
def test_each_version_of_a_rollout_has_its_floor(strategy: str) -> None:
    """Law: once a version has as many ready servers as the floor asks for, so many of them don't run on spot."""
    rollout: Json = {"strategy": strategy}
    if strategy == "canary":
        rollout["steps"] = [{"weight": 30}, {"pause": {"seconds": 5}}, {"weight": 80}]
    made = cluster(spot=8, others=8, floor=2, replicas=4, rollout=rollout)
    made.settle()
    versions = {pod["metadata"]["labels"][names.REVISION] for pod in made.ready_servers()}
    made.change_spec(model=V2)
    seen = set()
    for _ in range(150):
        made.later(10)
        made.reconcile()
        made.step()
        assert len(made.ready_servers()) >= 4
        assert off_spot(made) >= 2
        seen |= set(deployed(made))
    versions = {
        pod["metadata"]["labels"][names.REVISION] for pod in made.ready_servers()
    } - versions
    assert len(versions) == 1
    assert deployed(made) == {"": 2, "--on-demand": 2}
    assert len(made.ready_servers()) == 4
    if strategy != "rolling":
        assert "--candidate-on-demand" in seen


def test_a_version_that_demands_spot_has_nothing_to_divide() -> None:
    """While it serves until the new one is ready, its servers can't run elsewhere."""
    made = cluster(spot=3, others=3, floor=0, replicas=2)
    made.change_spec(resources=resources(spot="only"))
    made.settle()
    assert off_spot(made) == 0
    made.change_spec(resources=resources(1))
    for _ in range(40):
        made.reconcile()
        made.step()
        assert len(made.ready_servers()) >= 2
    made.settle()
    assert deployed(made) == {"": 1, "--on-demand": 1}


def test_scaling_in_takes_the_servers_on_spot_capacity_first() -> None:
    made = cluster(spot=3, others=3, floor=1, scale={"min": 1, "max": 3})
    for wanted, expected in ((3, 3), (2, 2), (1, 1)):
        made.wanted = wanted
        made.settle()
        assert len(made.ready_servers()) == expected
        assert off_spot(made) >= 1
    assert deployed(made) == {"": 0, "--on-demand": 1}


def test_it_scales_to_zero_and_back() -> None:
    made = cluster(spot=3, others=3, floor=1, scale={"min": 0, "max": 3})
    for wanted in (2, 0, 1):
        made.wanted = wanted
        made.settle()
        assert len(made.ready_servers()) == wanted
        assert off_spot(made) >= min(1, wanted)


def test_without_capacity_elsewhere_the_rest_serves_and_says_what_is_missing() -> None:
    made = cluster(spot=3, others=0, floor=1, replicas=3)
    made.settle()
    assert len(made.ready_servers()) == 2
    assert condition(made, "Scheduled")["reason"] == "Unschedulable"
    made.add_node("d0")
    made.settle()
    assert len(made.ready_servers()) == 3


def test_rendered_files_have_both_deployments() -> None:
    each = samples.workspace(resources=resources(1), replicas=3)
    listed = render_kubernetes(each, samples.release(each), SystemSettings())
    found = [one for one in listed if one["kind"] == "Deployment"]
    assert [(one["metadata"]["name"], one["spec"]["replicas"]) for one in found] == [
        ("chat--on-demand", 1), ("chat", 2),
    ]  # fmt: skip
    terms = found[0]["spec"]["template"]["spec"]["affinity"]["nodeAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]["nodeSelectorTerms"]
    assert all(
        any(one["operator"] == "NotIn" for one in term["matchExpressions"]) for term in terms
    )
    with pytest.raises(Exception, match="onDemandMinimum"):
        render_llmd(each, samples.release(each))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"resources": resources(1, spot="only")}, "goes with spot: preferred"),
        ({"resources": resources(1, spot="never")}, "goes with spot: preferred"),
        ({"resources": resources(-1)}, "greater than or equal to 0"),
        ({"resources": resources(1), "scale": {"max": 2, "by": "hpa"}}, "two Deployments"),
        (
            {
                "resources": resources(1),
                "scale": {"max": 2, "by": "keda", "prometheus": "http://p"},
            },
            "two Deployments",
        ),
        ({"resources": resources(1), "rollout": {"strategy": "external"}}, "two Deployments"),
    ],
)
def test_what_cannot_work_is_refused(wrong: Json, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        samples.workspace(**wrong)


@pytest.mark.parametrize("spares", [0, 1])
def test_both_kinds_share_a_node_that_has_room_for_both(spares: int) -> None:
    """Servers on one node of eight GPUs wait for no other node, and no other is warmed for them."""
    made = Cluster()
    made.add_node("d0", gpus=8)
    provisioning = {"capacity": {"onDemandMinimum": 1}, "warmSpares": spares}
    made.create_workspace(replicas=2, resources={"gpu": "L4", "provisioning": provisioning})
    made.settle()
    for number in range(1, 4):
        made.add_node(f"d{number}", gpus=8)
    made.settle()
    assert condition(made, "Ready")["status"] == "True"
    warming = made.api.list("Pod", NAMESPACE, {names.ROLE: names.PREWARM})
    assert len(warming) == spares
    made.change_spec(model=V2)
    made.settle()
    assert deployed(made) == {"": 1, "--on-demand": 1}
    assert condition(made, "Ready")["status"] == "True"


def test_a_deployment_that_is_deleted_says_nothing_of_the_servers_beside_it() -> None:
    """With all servers in the floor the Workspace's own Deployment is empty, and what serves is seen in the other."""
    made = cluster(spot=0, others=4, floor=4, scale={"min": 1, "max": 4})
    made.wanted = 4
    made.settle()
    assert len(made.ready_servers()) == 4
    # A controller that has just begun knows no number of the scaler's.
    made.wanted = None
    made.api.delete("Deployment", NAMESPACE, NAME)
    for _ in range(8):
        made.reconcile()
        made.step()
        assert len(made.ready_servers()) == 4
