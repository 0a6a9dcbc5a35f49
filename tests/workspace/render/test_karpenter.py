"""The node pool that Karpenter gets is what its published schema takes, and makes nodes that the servers fit."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from modelimage.errors import InvalidInput
from tests.workspace import samples
from tests.workspace.render.test_published import PUBLISHED
from workspace.controller.observation.nodes import tolerates
from workspace.hardware import requested_hardware
from workspace.node_demands import CLOUDS, demanded_terms
from workspace.node_pools import refusal
from workspace.node_terms import match
from workspace.render.karpenter import node_pool
from workspace.render.pod import tolerations

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


@pytest.mark.parametrize(
    ("node_class", "spec", "limit"),
    [
        # Nodes of 1: two for each of 5 replicas. Of 4: as each has two servers, 5 nodes.
        ("EC2NodeClass", {"resources": {"gpu": "L4", "gpus": 1}, "scale": {"max": 5}}, 10),
        ("EC2NodeClass", {"resources": {"gpu": "L4", "gpus": 2}, "scale": {"max": 5}}, 20),
        ("EC2NodeClass", {"resources": {"gpu": "L4", "gpus": 3}, "replicas": 5}, 40),
        # A replacement needs another node, though both servers fit one.
        ("EC2NodeClass", {"resources": {"gpu": "L4", "gpus": 2}}, 8),
        ("EC2NodeClass", {"resources": {"gpu": "L4"}, "replicas": 0}, 2),
        # Sold in eights.
        ("EC2NodeClass", {"resources": {"gpu": "H200", "gpus": 1}}, 16),
        ("NodeClass", {"resources": {"gpu": "A100-80GB", "gpus": 1}}, 16),
        ("AKSNodeClass", {"resources": {"gpu": "A100-80GB", "gpus": 1}}, 2),
        ("EC2NodeClass", {"resources": {"gpu": "H100", "gpus": 1}}, 2),
        ("EC2NodeClass", {"resources": {"gpu": "H100", "gpus": 2}}, 16),
        ("EC2NodeClass", {"resources": {"gpuMemory": "130Gi", "gpus": 1}}, 16),
        ("EC2NodeClass", {"resources": {"gpu": "H100", "gpus": 16, "nodes": 2}}, 32),
        # A spare is a node of its own.
        ("EC2NodeClass", {"resources": {"gpu": "L4", "gpus": 1, "provisioning": {"warmSpares": 2}}}, 4),
        ("EC2NodeClass", {"resources": {"gpu": "H200", "gpus": 1, "provisioning": {"warmSpares": 1}}}, 24),
    ],
)  # fmt: skip
def test_it_makes_no_more_than_replicas_replacements_and_spares_need(
    node_class: str, spec: Json, limit: int
) -> None:
    made = pool(f"{node_class}/gpu", **spec)
    assert made["spec"]["limits"] == {"nvidia.com/gpu": str(limit)}


def test_a_node_has_no_fewer_gpus_than_a_server() -> None:
    made = pool(resources={"gpu": "L4", "gpus": 2}, scale={"max": 5})
    assert requirement(made, "karpenter.k8s.aws/instance-gpu-count")["values"] == ["1"]


@pytest.mark.parametrize("cloud", CLOUDS, ids=lambda cloud: cloud.name)
def test_every_gpu_of_a_cloud_is_sold_in_some_number(cloud: Any) -> None:
    assert {name for names in cloud.names.values() for name in names} == set(cloud.sizes)
    assert all(sizes == tuple(sorted(sizes)) for sizes in cloud.sizes.values())


SELECTORS = st.dictionaries(
    st.sampled_from(
        ["team", "example.com/pool", "topology.kubernetes.io/zone", "kubernetes.io/arch", "nvidia.com/gpu.present",
         "karpenter.k8s.aws/instance-family", "karpenter.sh/nodepool", "node-restriction.kubernetes.io/team"]
    ), st.sampled_from(["a", "true"]), max_size=3,
)  # fmt: skip
TOLERATIONS = st.lists(
    st.fixed_dictionaries(
        {"key": st.sampled_from(["team", "nvidia.com/gpu", "cloud.google.com/gke-spot"])},
        optional={
            "value": st.sampled_from(["a", "true"]),
            "operator": st.sampled_from(["Equal", "Exists"]),
            "effect": st.sampled_from(["NoSchedule", "NoExecute"]),
        },
    ),
    max_size=3,
)


@given(selector=SELECTORS, tolerated=TOLERATIONS, gpus=st.integers(0, 2))
def test_whatever_servers_select_and_tolerate_its_nodes_are_theirs(
    selector: dict[str, str], tolerated: list[Json], gpus: int
) -> None:
    selector = {
        key: "true" if key == "nvidia.com/gpu.present" else value for key, value in selector.items()
    }
    resources = {
        "gpu": "L4", "gpus": gpus, "nodeSelector": selector, "tolerations": tolerated,
        "provisioning": {"by": "karpenter"},
    }  # fmt: skip
    made = pool(resources=resources)
    found = samples.workspace(resources=resources).spec.resources
    accepted = tolerations(found, gpus=gpus)
    refused = refusal(
        made, demanded_terms(found, gpus=gpus), selector, lambda taint: tolerates(accepted, taint)
    )
    taints = made["spec"]["template"]["spec"].get("taints", ())
    assert len({each["key"] for each in taints}) == len(taints)
    # A spec that names the GPU's taint with another effect tolerates none of ours.
    assert refused == "" or "nvidia.com/gpu isn't tolerated" in refused


def test_labels_that_no_instance_type_has_are_the_pools_and_tolerated_taints_too() -> None:
    made = pool(
        resources={
            "gpu": "L4",
            "nodeSelector": {"team": "a", "topology.kubernetes.io/zone": "eu-1a"},
            "tolerations": [
                {"key": "team", "value": "a"},
                {"key": "other", "operator": "Exists"},
                {"key": "cloud.google.com/gke-spot", "value": "true"},
            ],
        }
    )
    template = made["spec"]["template"]
    assert template["metadata"]["labels"] == {"team": "a", "nvidia.com/gpu.present": "true"}
    assert requirement(made, "topology.kubernetes.io/zone")["values"] == ["eu-1a"]
    assert template["spec"]["taints"] == [
        {"key": "nvidia.com/gpu", "value": "true", "effect": "NoSchedule"},
        {"key": "team", "value": "a", "effect": "NoSchedule"},
    ]


def test_the_pool_that_servers_select_by_name_has_it() -> None:
    selected = {"gpu": "L4", "nodeSelector": {"karpenter.sh/nodepool": "shared"}}
    assert pool(resources=selected)["metadata"]["name"] == "shared"


def test_pods_stay_away_until_pinned_models_are_verified() -> None:
    spec = pool(resources={"gpu": "L4"})["spec"]["template"]["spec"]
    assert spec["startupTaints"] == [
        {"key": "cache.weightyard.dev/starting", "effect": "NoSchedule"}
    ]
    assert [each["key"] for each in spec["taints"]] == ["nvidia.com/gpu"]


def test_servers_without_gpus_have_nodes_by_their_memory() -> None:
    made = pool(resources={"gpus": 0, "memory": "64Gi"})
    # As much memory as two nodes of the next size need.
    assert made["spec"]["limits"] == {"memory": "256Gi"}
    assert requirement(made, "kubernetes.io/arch")["values"] == ["amd64"]
    assert "taints" not in made["spec"]["template"]["spec"]
    assert "metadata" not in made["spec"]["template"]


@pytest.mark.parametrize(
    ("node_class", "resources", "words"),
    [
        ("EC2NodeClass", {"gpu": "L4"}, "not a node class"),
        ("OtherClass/a", {"gpu": "L4"}, "no node class of a known cloud"),
        ("AKSNodeClass/a", {"gpu": "B200"}, "no instance type with B200"),
        ("EC2NodeClass/a", {"gpu": "L4", "gpus": 16}, "no instance type with 16 GPUs"),
        (
            "EC2NodeClass/a",
            {"gpu": "L4", "nodeSelector": {"kubernetes.io/hostname": "a"}},
            "kubernetes.io/hostname",
        ),
        (
            "EC2NodeClass/a",
            {"gpu": "L4", "nodeSelector": {"nvidia.com/gpu.product": "a"}},
            "nvidia.com/gpu.product",
        ),
        (
            "AKSNodeClass/a",
            {"gpu": "T4", "nodeSelector": {"karpenter.k8s.aws/instance-family": "g4dn"}},
            "AKSNodeClass",
        ),
        ("EC2NodeClass/a", {"gpu": "MI300X", "vendor": "amd"}, "derived for NVIDIA GPUs"),
    ],
)
def test_what_cannot_be_derived_is_refused(node_class: str, resources: Json, words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as caught:
        pool(node_class, resources=resources)
    assert caught.value.hint
