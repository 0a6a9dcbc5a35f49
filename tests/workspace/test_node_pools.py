"""Which Karpenter NodePools can make nodes for a Workspace's servers: those rendered for it, and why others not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.workspace import samples
from workspace.controller.observation.nodes import tolerates
from workspace.hardware import requested_hardware
from workspace.node_demands import CLOUDS, demanded_terms
from workspace.node_pools import refusal, trouble
from workspace.node_terms import match
from workspace.render.karpenter import node_pool
from workspace.render.pod import tolerations
from workspace.schema import Resources, Workspace

Json = dict[str, Any]
KEY = "karpenter.k8s.aws/instance-gpu-count"
CUSTOM = "team.example.com/pool"


def pool(*requirements: Json, labels: Json | None = None, **spec: Any) -> Json:
    """A pool on AWS."""
    spec["nodeClassRef"] = {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": "gpu"}
    template = {
        "metadata": {"labels": labels or {}},
        "spec": {"requirements": list(requirements), **spec},
    }
    return {"metadata": {"name": "gpu"}, "spec": {"template": template}}


def require(key: str, operator: str, *values: str) -> Json:
    return {"key": key, "operator": operator, "values": list(values)}


def refused(found: Json, workspace: Workspace) -> str:
    resources: Resources = workspace.spec.resources
    gpus = requested_hardware(resources).count
    accepted = tolerations(resources, gpus=gpus)
    return refusal(
        found, demanded_terms(resources, gpus=gpus), resources.node_selector,
        lambda taint: tolerates(accepted, taint),
    )  # fmt: skip


@pytest.mark.parametrize("cloud", CLOUDS, ids=lambda cloud: cloud.name)
@pytest.mark.parametrize("spot", ["preferred", "only", "never"])
def test_the_pool_that_is_rendered_for_a_workspace_makes_its_nodes(cloud: Any, spot: str) -> None:
    resources = {
        "gpu": "H100",
        "gpus": 2,
        "provisioning": {"by": "karpenter", "capacity": {"spot": spot}},
    }
    workspace = samples.workspace(resources=resources)
    rendered = node_pool(
        workspace, samples.release(workspace), requested_hardware(workspace.spec.resources),
        node_class=f"{cloud.node_class[1]}/gpu",
    )  # fmt: skip
    assert refused(rendered, workspace) == ""


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (pool(), ""),
        (pool(require("karpenter.sh/capacity-type", "In", "on-demand")), ""),
        (pool(require("karpenter.k8s.aws/instance-gpu-name", "In", "h100", "l4")), ""),
        (pool(require("karpenter.k8s.aws/instance-gpu-count", "Gt", "3")), ""),
        (pool(taints=[{"key": "nvidia.com/gpu", "effect": "NoSchedule"}]), ""),
        (pool(startupTaints=[{"key": "x", "effect": "NoSchedule"}]), ""),
        (pool(require("karpenter.k8s.aws/instance-gpu-name", "In", "t4")), "leave no node"),
        (pool(taints=[{"key": "team", "effect": "NoSchedule"}]), "taint team isn't tolerated"),
    ],
)  # fmt: skip
def test_a_pool_of_smaller_gpus_or_with_a_taint_makes_none(found: Json, why: str) -> None:
    workspace = samples.workspace(resources={"gpu": "L4", "provisioning": {"by": "karpenter"}})
    said = refused(found, workspace)
    assert (said == "") == (why == "")
    assert why in said


def test_a_label_that_no_instance_type_has_must_be_the_pools() -> None:
    workspace = samples.workspace(resources={"gpu": "L4", "nodeSelector": {CUSTOM: "a"}})
    assert CUSTOM in refused(pool(), workspace)
    assert refused(pool(labels={CUSTOM: "a"}), workspace) == ""
    assert refused(pool(require(CUSTOM, "In", "a", "b")), workspace) == ""
    assert CUSTOM in refused(pool(labels={CUSTOM: "b"}), workspace)
    assert CUSTOM in refused(pool(require(CUSTOM, "NotIn", "a")), workspace)


REQUIREMENTS = st.one_of(
    st.builds(lambda values: require(KEY, "In", *values), st.sets(st.sampled_from("12345"), min_size=1)),
    st.builds(lambda values: require(KEY, "NotIn", *values), st.sets(st.sampled_from("12345"), min_size=1)),
    st.builds(lambda value: require(KEY, "Gt", str(value)), st.integers(0, 6)),
    st.builds(lambda value: require(KEY, "Lt", str(value)), st.integers(1, 7)),
    st.just(require(KEY, "Exists")),
)  # fmt: skip


@given(
    asked=st.lists(REQUIREMENTS, max_size=3), given_=st.lists(REQUIREMENTS, min_size=1, max_size=3)
)
def test_a_pool_is_refused_exactly_when_no_value_fulfils_both(
    asked: list[Json], given_: list[Json]
) -> None:
    possible = any(
        match([[*asked, *given_]], {KEY: value}) for value in [*map(str, range(20)), "text"]
    )
    said = refusal(pool(*given_), [asked], {}, lambda _: True)
    # A pool whose own requirements no type fulfils is nobody's: only what is asked for counts.
    assert (said == "") == (possible or not asked)


@pytest.mark.parametrize(
    ("status", "limits", "says"),
    [
        ({}, {}, ""),
        ({"conditions": [{"type": "Ready", "status": "True"}]}, {}, ""),
        (
            {"conditions": [{"type": "NodeClassReady", "status": "False", "message": "NodeClass not found"}]},
            {}, "NodeClassReady is false: NodeClass not found",
        ),
        ({"resources": {"nvidia.com/gpu": "4"}}, {"nvidia.com/gpu": "8"}, ""),
        ({"resources": {"nvidia.com/gpu": "8"}}, {"nvidia.com/gpu": "8"}, "its limit of 8 nvidia.com/gpu is used up"),
    ],
)  # fmt: skip
def test_a_pool_that_makes_no_nodes_now_says_why(status: Json, limits: Json, says: str) -> None:
    found = pool()
    found["status"], found["spec"]["limits"] = status, limits
    assert trouble(found) == says


@pytest.mark.parametrize(
    ("operator", "value", "fits"),
    [
        ("Gte", "2", True), ("Gte", "9", True), ("Lte", "1", False), ("Lte", "2", True), ("Gt", "x", False),
        ("Beyond", "2", False),
    ],
)  # fmt: skip
def test_bounds_are_those_that_karpenter_knows(operator: str, value: str, fits: bool) -> None:
    """Servers with two GPUs; what a definition would refuse raises nothing."""
    asking = samples.workspace(
        resources={"gpu": "L4", "gpus": 2, "provisioning": {"by": "karpenter"}}
    )
    names = require("karpenter.k8s.aws/instance-gpu-name", "In", "l4")
    assert (refused(pool(names, require(KEY, operator, value)), asking) == "") == (
        fits and value != "x"
    )


@pytest.mark.parametrize(
    ("limit", "used", "full"),
    [
        ("2Pi", "1Gi", False), ("1e3", "999", False), ("1e3", "1k", True), ("1k", "1100500m", True),
        ("1500m", "1", False), ("0.5k", "600", True), ("no number", "1", False),
    ],
)  # fmt: skip
def test_limits_are_quantities_of_any_form(limit: str, used: str, full: bool) -> None:
    found = pool()
    found["spec"]["limits"] = {"memory": limit}
    found["status"] = {"resources": {"memory": used}}
    assert bool(trouble(found)) == full


def test_of_several_clouds_labels_that_of_the_pools_own_is_named() -> None:
    small = pool(require("karpenter.k8s.aws/instance-gpu-name", "In", "t4"))
    asking = samples.workspace(
        resources={"gpu": "L4", "gpus": 1, "provisioning": {"by": "karpenter"}}
    )
    assert "karpenter.k8s.aws/instance-gpu-name" in refused(small, asking)
