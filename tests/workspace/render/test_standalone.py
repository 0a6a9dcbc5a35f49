"""What a rendered file demands of its nodes: the GPU that it was planned for, and limits of memory."""

from __future__ import annotations

from typing import Any

import pytest

from tests.workspace import samples
from workspace.hardware import GPUS, requested_hardware
from workspace.node_terms import Term, match
from workspace.render.cluster import render_kubernetes
from workspace.render.compose import render_compose
from workspace.render.llmd import render_llmd
from workspace.render.pod import affinity
from workspace.render.quantities import total_bytes
from workspace.render.routing import SystemSettings
from workspace.render.standalone import gpu_node_terms, undemanded_gpu

Json = dict[str, Any]
# Labels of GPU feature discovery as they are seen on nodes: MiB of memory, and the compute capability.
LABELLED = {
    "T4": (15360, "7", "5"), "A10": (23028, "8", "6"), "L4": (23034, "8", "9"), "A100": (40960, "8", "0"),
    "A100-80GB": (81920, "8", "0"), "H100": (81559, "9", "0"), "H200": (143771, "9", "0"),
}  # fmt: skip


def labels_of(name: str) -> dict[str, str]:
    memory, major, minor = LABELLED[name]
    return {
        "nvidia.com/gpu.memory": str(memory),
        "nvidia.com/gpu.compute.major": major,
        "nvidia.com/gpu.compute.minor": minor,
    }


def terms_for(resources: Json) -> list[Term]:
    workspace = samples.workspace(resources=resources)
    hardware = requested_hardware(workspace.spec.resources)
    return gpu_node_terms(workspace, samples.release(workspace), hardware)


@pytest.mark.parametrize("planned", [name for name in LABELLED if name in GPUS])
def test_nodes_with_the_planned_gpu_or_a_better_one_are_taken(planned: str) -> None:
    terms = terms_for({"gpu": planned})
    for name, (memory, major, minor) in LABELLED.items():
        enough = memory >= LABELLED[planned][0] * 0.95
        able = (major, minor) >= LABELLED[planned][1:]
        assert match(terms, labels_of(name)) == (enough and able), (planned, name)
    assert not match(terms, {})


@pytest.mark.parametrize(
    "resources",
    [
        {"gpus": 0},
        {"gpu": "L4", "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-L4"}},
        {"gpu": "L4", "nodeSelector": {"cloud.google.com/gke-accelerator": "nvidia-l4"}},
    ],
)
def test_what_is_demanded_already_stays_as_it_is(resources: Json) -> None:
    assert terms_for(resources) == []


def test_a_selector_that_names_no_gpu_is_not_enough() -> None:
    assert terms_for({"gpu": "L4", "nodeSelector": {"zone": "a"}})


def test_another_vendors_gpu_must_be_selected_by_hand() -> None:
    resources = {"gpu": "MI300X", "vendor": "amd"}
    workspace = samples.workspace(resources=resources)
    told = undemanded_gpu(workspace, samples.release(workspace))
    assert told is not None
    assert "spec.resources.nodeSelector" in told
    selected = samples.workspace(
        resources={**resources, "nodeSelector": {"amd.com/gpu.device-id": "74a1"}}
    )
    assert undemanded_gpu(selected, samples.release(selected)) is None
    assert terms_for(resources) == []


def test_required_terms_are_combined_with_those_there() -> None:
    """Terms are alternatives, so a further condition belongs into each of them."""
    each = samples.workspace(resources={"gpu": "L4"}, placement="required")
    release = samples.release(each)
    alone = affinity(each.spec, release)
    merged = affinity(each.spec, release, terms_for({"gpu": "L4"}))
    assert alone is not None
    assert merged is not None

    def terms(found: Json) -> list[Json]:
        required = found["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        return list(required["nodeSelectorTerms"])

    (own,) = terms(alone)[0]["matchExpressions"]
    assert len(terms(merged)) == 2
    assert all(own in term["matchExpressions"] for term in terms(merged))
    assert all(len(term["matchExpressions"]) > 1 for term in terms(merged))


@pytest.mark.parametrize("memory", [None, "48Gi"])
def test_every_container_has_a_limit_of_memory(memory: str | None) -> None:
    resources = {"gpu": "L4", **({"memory": memory} if memory else {})}
    workspace = samples.workspace(resources=resources)
    release = samples.release(workspace)
    hardware = requested_hardware(workspace.spec.resources)
    wanted = memory or total_bytes(2 * release.memory_bytes)
    objects = render_kubernetes(workspace, release, SystemSettings(), hardware)
    (deployment,) = [each for each in objects if each["kind"] == "Deployment"]
    pod = deployment["spec"]["template"]["spec"]
    assert [e["resources"]["limits"]["memory"] for e in pod["containers"]] == [wanted]
    values = render_llmd(workspace, release, hardware)["decode"]
    assert [e["resources"]["limits"]["memory"] for e in values["containers"]] == [wanted]
    required = values["extraConfig"]["affinity"]["nodeAffinity"]
    terms = required["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert match([each["matchExpressions"] for each in terms], labels_of("L4"))
    services = render_compose(workspace, release, SystemSettings())["services"]
    assert all(each["mem_limit"] > 0 for each in services.values())
