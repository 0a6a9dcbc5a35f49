"""The node pool that Karpenter gets is what its published schema takes, and makes nodes that the servers fit."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from modelimage.errors import InvalidInput
from tests.workspace import samples
from tests.workspace.render.test_published import PUBLISHED
from workspace.hardware import requested_hardware
from workspace.node_demands import CLOUDS, demanded_terms
from workspace.node_terms import match
from workspace.render.karpenter import node_pool

Json = dict[str, Any]
SCHEMA = json.loads((PUBLISHED / "karpenter-nodepool.json").read_text())


def pool(node_class: str = "EC2NodeClass/gpu", **spec: Any) -> Json:
    each = samples.workspace(**spec)
    hardware = requested_hardware(each.spec.resources)
    made = node_pool(each, samples.release(each), hardware, node_class=node_class)
    problems = [error.message for error in Draft202012Validator(SCHEMA).iter_errors(made)]
    assert problems == []
    return made


def requirement(made: Json, key: str) -> Json:
    listed = made["spec"]["template"]["spec"]["requirements"]
    (found,) = [each for each in listed if each["key"] == key]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("cloud", CLOUDS, ids=lambda cloud: cloud.node_class[1])
@pytest.mark.parametrize("gpu", ["T4", "H100"])
def test_its_nodes_are_those_that_the_servers_demand(cloud: Any, gpu: str) -> None:
    resources = {"gpu": gpu, "provisioning": {"by": "karpenter"}}
    made = pool(f"{cloud.node_class[1]}/gpu", resources=resources)
    listed = made["spec"]["template"]["spec"]["requirements"]
    # A node of it, with the greatest of each number.
    labels = {
        each["key"]: each["values"][0] if each["operator"] == "In" else str(10**6)
        for each in listed
    }
    terms = demanded_terms(samples.workspace(resources=resources).spec.resources, gpus=1)
    assert match([listed], labels)
    assert match(terms, labels)


@pytest.mark.parametrize(
    ("spot", "types"),
    [
        (None, ["spot", "on-demand", "reserved"]),
        ("preferred", ["spot", "on-demand", "reserved"]),
        ("only", ["spot"]),
        ("never", ["on-demand", "reserved"]),
    ],
)
def test_capacity(spot: str | None, types: list[str]) -> None:
    provisioning = {"provisioning": {"by": "karpenter", "capacity": {"spot": spot}}} if spot else {}
    made = pool(resources={"gpu": "L4", **provisioning})
    assert requirement(made, "karpenter.sh/capacity-type")["values"] == types


def test_it_makes_no_more_than_the_replicas_and_their_replacements_need() -> None:
    made = pool(resources={"gpu": "L4", "gpus": 2}, scale={"max": 5})
    assert made["spec"]["limits"] == {"nvidia.com/gpu": "20"}
    assert requirement(made, "karpenter.k8s.aws/instance-gpu-count")["values"] == ["1"]


def test_its_limit_has_room_for_the_warm_spares() -> None:
    """A spare holds what one node of a server needs, of servers on several nodes too."""
    provisioning = {"by": "karpenter", "warmSpares": 2}
    made = pool(resources={"gpu": "L4", "gpus": 1, "provisioning": provisioning}, scale={"max": 1})
    assert made["spec"]["limits"] == {"nvidia.com/gpu": "4"}


def test_pods_stay_away_until_pinned_models_are_verified() -> None:
    spec = pool(resources={"gpu": "L4"})["spec"]["template"]["spec"]
    assert spec["startupTaints"] == [
        {"key": "cache.weightyard.dev/starting", "effect": "NoSchedule"}
    ]
    assert [each["key"] for each in spec["taints"]] == ["nvidia.com/gpu"]


def test_servers_without_gpus_need_none() -> None:
    made = pool(resources={"gpus": 0, "memory": "64Gi"})
    assert "limits" not in made["spec"]
    assert "taints" not in made["spec"]["template"]["spec"]


@pytest.mark.parametrize(
    ("node_class", "resources", "words"),
    [
        ("EC2NodeClass", {"gpu": "L4"}, "not a node class"),
        ("OtherClass/a", {"gpu": "L4"}, "no node class of a known cloud"),
        ("AKSNodeClass/a", {"gpu": "B200"}, "no instance type with B200"),
        ("EC2NodeClass/a", {"gpu": "MI300X", "vendor": "amd"}, "derived for NVIDIA GPUs"),
    ],
)
def test_what_cannot_be_derived_is_refused(node_class: str, resources: Json, words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as caught:
        pool(node_class, resources=resources)
    assert caught.value.hint
