"""Which nodes a Workspace's servers demand: capacity, and GPUs of instance types that don't stand yet."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.workspace.samples import release, workspace
from workspace.controller.observation.nodes import KubeNode, eligible
from workspace.hardware import GPUS, Gpu
from workspace.node_demands import CLOUDS, demanded_terms, discovered_terms, gpu_terms
from workspace.node_terms import Term, both, is_above, is_in, is_not_in, match
from workspace.provisioning_spec import Provisioning
from workspace.render.cluster import render_kubernetes
from workspace.render.deployments import deployment
from workspace.render.pod import pod_template
from workspace.render.routing import SystemSettings
from workspace.schema import Resources

Json = dict[str, Any]

ON_DEMAND = {"karpenter.sh/capacity-type": "on-demand"}
# A node of each cloud that it may take back, and one that stays.
SPOT = [
    {"karpenter.sh/capacity-type": "spot"}, {"eks.amazonaws.com/capacityType": "SPOT"},
    {"cloud.google.com/gke-spot": "true"}, {"kubernetes.azure.com/scalesetpriority": "spot"},
]  # fmt: skip
STAYING: list[dict[str, str]] = [ON_DEMAND, {"eks.amazonaws.com/capacityType": "ON_DEMAND"}, {}]
AWS = "karpenter.k8s.aws/instance-gpu"


def resources(**more: Any) -> Resources:
    return Resources.model_validate(more)


def capacity(spot: str, **more: Any) -> Resources:
    return resources(provisioning={"capacity": {"spot": spot}, **more})


def node(labels: dict[str, str], *, taints: list[Json] | None = None, **metadata: Any) -> KubeNode:
    return KubeNode.from_document(
        {
            "metadata": {"name": "n", "labels": labels, **metadata},
            "spec": {"taints": taints or []},
            "status": {
                "allocatable": {"nvidia.com/gpu": "8"},
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        }
    )


@pytest.mark.parametrize(
    ("spot", "on_spot", "elsewhere"),
    [("preferred", True, True), ("only", True, False), ("never", False, True)],
)
def test_servers_go_where_their_capacity_is(spot: str, on_spot: bool, elsewhere: bool) -> None:
    wanted = capacity(spot)
    assert [bool(eligible([node(each)], wanted, gpus=0)) for each in SPOT] == [on_spot] * len(SPOT)
    found = [bool(eligible([node(each)], wanted, gpus=0)) for each in STAYING]
    assert found == [elsewhere] * len(STAYING)


def test_the_taints_of_spot_nodes_are_tolerated_where_spot_is_wanted() -> None:
    azure = {
        "key": "kubernetes.azure.com/scalesetpriority",
        "value": "spot",
        "effect": "NoSchedule",
    }
    tainted = node(SPOT[3], taints=[azure])
    assert eligible([tainted], capacity("preferred"), gpus=0)
    assert not eligible([tainted], resources(), gpus=0)
    assert not eligible([tainted], capacity("never"), gpus=0)


def test_a_node_that_is_deleted_takes_no_server() -> None:
    """Karpenter deletes a Node first, and drains it then."""
    leaving = node({}, deletionTimestamp="2026-01-01T00:00:00Z")
    assert (leaving.usable, leaving.ready) == (False, True)
    assert eligible([leaving], resources(), gpus=0) == []


def test_pods_prefer_spot_less_than_the_model() -> None:
    each = workspace(resources={"gpu": "L4", "provisioning": {"capacity": {"spot": "preferred"}}})
    pod = pod_template(each, release(each), revision="1")["spec"]
    preferred = pod["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert [term["weight"] for term in preferred] == [100, *[50] * len(SPOT)]
    assert {each["key"] for each in pod["tolerations"]} >= {"cloud.google.com/gke-spot"}


def test_placement_and_capacity_hold_together() -> None:
    wanted = {"gpu": "L4", "provisioning": {"capacity": {"spot": "only"}}}
    each = workspace(placement="required", resources=wanted)
    pod = pod_template(each, release(each), revision="1")["spec"]
    terms = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert len(terms["nodeSelectorTerms"]) == len(SPOT)
    assert all(
        len(term["matchExpressions"]) == 2
        and term["matchExpressions"][0]["key"].startswith("cache.weightyard.dev/")
        for term in terms["nodeSelectorTerms"]
    )


def aws(name: str, count: int, memory: int) -> dict[str, str]:
    return {f"{AWS}-name": name, f"{AWS}-count": str(count), f"{AWS}-memory": str(memory)}


@pytest.mark.parametrize(
    ("gpu", "gpus", "labels", "fits"),
    [
        ("L4", 1, aws("l4", 1, 22888), True),
        ("L4", 1, aws("l4", 1, 11444), False),  # half a card
        ("L4", 1, aws("t4", 1, 16384), False),
        ("L4", 1, aws("v100", 1, 32768), False),  # large enough, too old
        ("L4", 2, aws("l4", 1, 22888), False),
        ("L4", 2, aws("l40s", 4, 45776), True),
        ("A100-80GB", 1, aws("a100", 8, 40960), False),
        ("A100-80GB", 1, aws("a100", 8, 81920), True),
        ("H100", 8, aws("h200", 8, 144384), True),
        ("T4", 1, {"karpenter.azure.com/sku-gpu-name": "T4", "karpenter.azure.com/sku-gpu-count": "1"}, True),
        ("L4", 1, {"nvidia.com/gpu.memory": "23034", "nvidia.com/gpu.compute.major": "8",
                   "nvidia.com/gpu.compute.minor": "9"}, True),
        ("L4", 1, {"nvidia.com/gpu.memory": "15360", "nvidia.com/gpu.compute.major": "7",
                   "nvidia.com/gpu.compute.minor": "5"}, False),
        ("L4", 1, {}, False),
    ],
)  # fmt: skip
def test_karpenter_makes_nodes_with_the_planned_gpu(
    gpu: str, gpus: int, labels: dict[str, str], fits: bool
) -> None:
    wanted = resources(gpu=gpu, provisioning={"by": "karpenter"})
    assert bool(eligible([node(labels)], wanted, gpus=gpus)) == fits


def test_every_clouds_instance_types_have_the_gpu_that_they_are_asked_for_by() -> None:
    for cloud in CLOUDS:
        for name in cloud.names:
            (term,) = gpu_terms(GPUS[name], 1, (cloud,))
            assert set(cloud.names[name]) <= set(term[0]["values"]), (cloud.name, name)


def test_gpus_that_no_cloud_names_are_asked_for_by_their_memory() -> None:
    wanted = resources(gpu="Own", gpuMemory="40Gi", provisioning={"by": "karpenter"})
    terms = demanded_terms(wanted, gpus=1)
    assert match(terms, aws("l40s", 1, 45776))
    assert not match(terms, aws("l4", 1, 22888))
    assert gpu_terms(Gpu("Huge", 1 << 50), 1) == []


@pytest.mark.parametrize(
    "more",
    [
        {"gpu": "L4"},
        {"provisioning": {"by": "karpenter"}},
        {"migProfile": "1g.10gb", "provisioning": {"by": "karpenter"}},
        {"gpu": "MI300X", "vendor": "amd", "provisioning": {"by": "karpenter"}},
    ],
)
def test_nothing_is_demanded_of_what_is_not_known(more: Json) -> None:
    assert demanded_terms(resources(**more), gpus=1) == []


def test_kueue_gets_its_queue_on_deployments_and_pods() -> None:
    each = workspace(resources={"gpu": "L4", "provisioning": {"by": "kueue", "queue": "gpus"}})
    template = pod_template(each, release(each), revision="1")
    servers = deployment(
        each, template, replicas=1, startup_seconds=1, environment=SystemSettings()
    )
    label = {"kueue.x-k8s.io/queue-name": "gpus"}
    for metadata in (servers["metadata"], template["metadata"]):
        assert label.items() <= metadata["labels"].items()
    assert not label.items() <= servers["spec"]["selector"]["matchLabels"].items()


@pytest.mark.parametrize("wrong", [{"by": "kueue"}, {"queue": "a"}, {"by": "kueue", "queue": "A"}])
def test_a_queue_is_kueues(wrong: Json) -> None:
    with pytest.raises(ValidationError):
        Provisioning.model_validate(wrong)


def test_rendered_files_demand_the_gpu_once() -> None:
    each = workspace(resources={"gpu": "L4", "provisioning": {"by": "karpenter"}})
    made = release(each)
    servers = render_kubernetes(each, made, SystemSettings())[-1]
    own = pod_template(each, made, revision="1")
    found = servers["spec"]["template"]["spec"]["affinity"]
    assert found == own["spec"]["affinity"]


KEYS = st.sampled_from(["a", "b", "n"])
VALUES = st.sampled_from(["1", "2", "30", "x", ""])
LABELS = st.dictionaries(KEYS, VALUES)
REQUIREMENTS = st.one_of(
    st.builds(is_in, KEYS, st.lists(VALUES, min_size=1)),
    st.builds(is_not_in, KEYS, st.lists(VALUES, min_size=1)),
    st.builds(is_above, KEYS, st.integers(0, 40)),
    st.builds(lambda key, how: {"key": key, "operator": how}, KEYS, st.sampled_from(["Exists", "DoesNotExist"])),
)  # fmt: skip
TERMS = st.lists(st.lists(REQUIREMENTS, min_size=1, max_size=3), max_size=3)


@given(TERMS, TERMS, LABELS)
def test_both_holds_where_each_holds(
    first: list[Term], second: list[Term], labels: dict[str, str]
) -> None:
    assert match(both(first, second), labels) == (match(first, labels) and match(second, labels))


@given(st.sampled_from(sorted(GPUS)), st.integers(1, 8))
def test_a_node_that_stands_and_a_new_one_are_of_the_same_kind(name: str, gpus: int) -> None:
    """What discovery would label a new node of each demanded type with is what standing nodes are asked for."""
    gpu = GPUS[name]
    for cloud in CLOUDS:
        for term in gpu_terms(gpu, gpus, (cloud,)):
            for known, names in cloud.names.items():
                offered = GPUS[known]
                labels = {cloud.name: names[0], cloud.count: str(gpus)}
                if cloud.memory:
                    labels[cloud.memory] = str(offered.memory_bytes >> 20)
                if not match([term], labels):
                    continue
                major, minor = divmod(offered.capability, 10)
                discovered = {
                    "nvidia.com/gpu.memory": str(offered.memory_bytes >> 20),
                    "nvidia.com/gpu.compute.major": str(major),
                    "nvidia.com/gpu.compute.minor": str(minor),
                }
                nearly = replace(gpu, memory_bytes=int(gpu.memory_bytes * 0.9))
                assert match(discovered_terms(nearly), discovered), (name, known)
