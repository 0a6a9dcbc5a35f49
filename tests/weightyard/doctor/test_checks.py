"""The checks: a sound node and cluster pass; each thing that is wrong is found, by the check that it concerns."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_agent.store.space import Amount
from tests.weightyard.doctor.sound import (
    CLUSTER,
    CRD_NAME,
    DEFINITION,
    EXPECTED,
    NODE,
    TB,
    node,
    ours,
    program,
)
from weightyard.doctor.cluster_checks import DRIVER_SPEC, ClusterFacts, Permission, check_cluster
from weightyard.doctor.facts import HostFacts, Kubelet
from weightyard.doctor.node_checks import MachineRole, NodePurpose, check_node, free_space
from weightyard.doctor.result import Finding, Level

WANTED = NodePurpose(MachineRole.NODE, Amount.parse("20%"))
CHANGED = deepcopy(DEFINITION)
CHANGED["spec"]["versions"][0]["schema"] = {"openAPIV3Schema": {"type": "object"}}


def spoiled(path: str, value: object) -> HostFacts:
    """The sound node, but for one fact."""
    section, _, name = path.partition(".")
    if not name:
        return NODE.model_copy(update={section: value})
    return NODE.model_copy(
        update={section: getattr(NODE, section).model_copy(update={name: value})}
    )


def found(findings: list[Finding]) -> list[tuple[str, str]]:
    """What isn't well; whatever isn't, has advice."""
    assert all(bool(each.advice) == (each.level is not Level.OK) for each in findings)
    return [(each.check, each.level.value) for each in findings if each.level is not Level.OK]


@pytest.mark.parametrize("role", MachineRole)
def test_a_sound_machine_passes_every_check(role: MachineRole) -> None:
    assert found(check_node(NODE, NodePurpose(role, Amount.parse("20%")))) == []


def test_a_builder_needs_what_builds_import() -> None:
    wanted = NodePurpose(MachineRole.BUILDER, Amount.parse("5%"))
    assert found(check_node(spoiled("extras", ("sign",)), wanted)) == [("extras", "fail")]
    advice = next(
        each.advice for each in check_node(spoiled("extras", ()), wanted) if each.check == "extras"
    )
    assert "[builder]" in advice
    (seen,) = [
        each.seen
        for each in check_node(spoiled("extras", ("builder",)), wanted)
        if each.check == "extras"
    ]
    assert "without convert, evaluate, gptq, sign" in seen


@pytest.mark.parametrize(
    ("path", "value", "finding"),
    [
        ("kernel", "5.10.0-generic", ("kernel", "fail")),
        ("kernel", "strange", ("kernel", "warn")),
        ("kubelet.pods", False, ("kubelet directory", "fail")),
        ("kubelet.found", False, ("kubelet directory", "fail")),
        ("kubelet.shared", False, ("kubelet directory", "fail")),
        ("kubelet.registration", False, ("CSI registration", "fail")),
        ("disk.read_only", True, ("filesystem", "fail")),
        ("disk.filesystem", "nfs4", ("filesystem", "fail")),
        ("disk.filesystem", "tmpfs", ("filesystem", "warn")),
        ("disk.hard_links", False, ("hard links", "fail")),
        ("disk.hard_links", None, ("hard links", "warn")),
        ("disk.read_rate", 0.2e9, ("disk speed", "warn")),
        ("disk.write_rate", 0.1e9, ("disk speed", "warn")),
        ("disk.problem", "the disk is full", ("disk speed", "warn")),
        ("disk.free", TB // 2, ("free space", "fail")),
        ("kubelet.eviction_hard", {"nodefs.available": "25%"}, ("free space", "fail")),
        ("kubelet.eviction_hard", {"imagefs.available": "2Ti"}, ("free space", "fail")),
        ("kubelet.eviction_hard", {"nodefs.available": "20%"}, ("free space", "warn")),
        ("clock.offset", -7.0, ("clock", "fail")),
        ("clock.synchronized", False, ("clock", "warn")),
        ("clock.synchronized", None, ("clock", "warn")),
        ("nics", (NODE.nics[0].model_copy(update={"rate": 10**9}),), ("network", "warn")),
        ("containerd.config_path", None, ("containerd", "warn")),
        ("containerd.configuration", None, ("containerd", "warn")),
        ("containerd.inline_mirrors", ("docker.io",), ("containerd", "warn")),
        ("containerd.problem", "not TOML", ("containerd", "warn")),
        ("selinux", "enforcing", ("access control", "warn")),
        ("gpus.count", 0, ("GPUs", "warn")),
    ],
)
def test_what_is_wrong_with_a_node_is_found(path: str, value: object, finding: Any) -> None:
    assert found(check_node(spoiled(path, value), WANTED)) == [finding]


def test_cards_that_tell_no_rate_are_no_problem() -> None:
    assert found(check_node(spoiled("nics", ()), WANTED)) == []


def test_thresholds_count_only_on_the_cache_s_own_disk() -> None:
    other = spoiled("kubelet.eviction_hard", {"nodefs.available": "90%"})
    apart = other.model_copy(update={"disk": other.disk.model_copy(update={"nodefs": False})})
    assert free_space(other, WANTED).level is Level.FAIL
    assert free_space(apart, WANTED).level is Level.OK


@given(
    total=st.integers(1, 10**15), free=st.integers(0, 10**15), min_free=st.integers(0, 100),
    threshold=st.integers(0, 100),
)  # fmt: skip
def test_space_is_well_only_where_kubelet_evicts_nobody(
    total: int, free: int, min_free: int, threshold: int
) -> None:
    """A cache that fills its disk down to the minimum stays above the threshold."""
    disk = NODE.disk.model_copy(update={"total": total, "free": free})
    kubelet = NODE.kubelet.model_copy(
        update={"eviction_hard": {"nodefs.available": f"{threshold}%"}}
    )
    facts = NODE.model_copy(update={"disk": disk, "kubelet": kubelet})
    amount = Amount(percent=float(min_free))
    level = free_space(facts, NodePurpose(MachineRole.NODE, amount)).level
    if level is Level.OK:
        assert free > amount.of(total) > Amount(percent=float(threshold)).of(total)


def test_a_sound_cluster_passes_every_check() -> None:
    assert found(check_cluster(CLUSTER, EXPECTED)) == []


def test_a_cluster_without_weightyard_passes() -> None:
    bare = replace(CLUSTER, driver=None, driver_nodes=frozenset(), crds={CRD_NAME: None})
    assert found(check_cluster(bare, EXPECTED)) == []


def unready(name: str, kind: str, status: str) -> dict[str, Any]:
    made = node(name)
    made["status"]["conditions"] = [
        each if each["type"] != kind else {"type": kind, "status": status}
        for each in made["status"]["conditions"]
    ]
    return made


WINDOWS = node("gpu-1")
WINDOWS["metadata"]["labels"]["kubernetes.io/os"] = "windows"
CRIO = node("gpu-1")
CRIO["status"]["nodeInfo"]["containerRuntimeVersion"] = "cri-o://1.30.1"


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ({"version": "v1.24.9"}, ("Kubernetes", "fail")),
        ({"version": ""}, ("Kubernetes", "fail")),
        ({"denied": (Permission("create", "clusterroles", "rbac.authorization.k8s.io"),)}, ("permissions", "fail")),
        ({"namespace_labels": None}, ("namespace", "warn")),
        ({"namespace_labels": {}}, ("namespace", "warn")),
        ({"namespace_labels": {"pod-security.kubernetes.io/enforce": "restricted"}}, ("namespace", "fail")),
        ({"nodes": ()}, ("nodes", "fail")),
        ({"nodes": (WINDOWS,)}, ("nodes", "fail")),
        ({"nodes": (unready("gpu-1", "DiskPressure", "True"),)}, ("nodes", "warn")),
        ({"nodes": (unready("gpu-1", "Ready", "Unknown"),)}, ("nodes", "warn")),
        ({"nodes": (CRIO,)}, ("runtimes", "warn")),
        ({"nodes": (node("gpu-1", **{"nvidia.com/gpu": "0"}),)}, ("GPUs", "warn")),
        ({"driver": {"spec": {**DRIVER_SPEC, "fsGroupPolicy": "File"}}}, ("CSI driver", "fail")),
        ({"driver_nodes": frozenset({"gpu-1"})}, ("CSI driver", "warn")),
        ({"crds": {**CLUSTER.crds, CRD_NAME: CHANGED}}, ("CRDs", "warn")),
        ({"admission_policies": False}, ("admission policies", "warn")),
        ({"programs": (program("DaemonSet", "weightyard-agent", 1, 2),)}, ("programs", "fail")),
        ({"programs": (program("Deployment", "weightyard-controller", 0, 1),)}, ("programs", "fail")),
        ({"programs": (program("DaemonSet", "weightyard-agent", 2, 2, "0.9"),)}, ("programs", "warn")),
        ({"caches": (ours("NodeCache", "gpu-1", "Unknown"),)}, ("node caches", "fail")),
        ({"caches": (ours("NodeCache", "gpu-1", None),)}, ("node caches", "fail")),
        ({"served": (ours("Workspace", "chat", "False"),)}, ("models", "warn")),
        ({"served": (ours("CachedModel", "chat", None),)}, ("models", "warn")),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_cluster_is_found(change: dict[str, Any], finding: Any) -> None:
    spoiled_cluster: ClusterFacts = replace(CLUSTER, **change)
    assert found(check_cluster(spoiled_cluster, EXPECTED)) == [finding]


def test_before_the_installation_its_parts_are_no_finding() -> None:
    bare = replace(CLUSTER, programs=(), caches=(), served=())
    assert found(check_cluster(bare, EXPECTED)) == []


def test_a_workspace_that_was_stopped_is_no_finding() -> None:
    stopped = ours("Workspace", "chat", "False", reason="Stopped")
    assert found(check_cluster(replace(CLUSTER, served=(stopped,)), EXPECTED)) == []


def test_what_is_not_served_says_why_and_where_to_look() -> None:
    waiting = ours("Workspace", "chat", "False", message="No node has two GPUs.")
    waiting["metadata"]["namespace"] = "team"
    (finding,) = [
        each for each in check_cluster(replace(CLUSTER, served=(waiting,)), EXPECTED)
        if each.check == "models"
    ]  # fmt: skip
    assert finding.seen == "not ready: Workspace/chat; No node has two GPUs."
    assert finding.advice == "kubectl describe --namespace team workspace/chat"


def test_slices_of_gpus_count_as_gpus() -> None:
    sliced = node("gpu-1", **{"nvidia.com/gpu": "0", "nvidia.com/mig-1g.10gb": "7"})
    assert found(check_cluster(replace(CLUSTER, nodes=(sliced,)), EXPECTED)) == []


@pytest.mark.parametrize(
    ("kubelet", "is_node"),
    [
        (Kubelet(path="/var/lib/kubelet", found=False), False),
        (Kubelet(path="/var/lib/kubelet", found=True, pods=True), False),
        (Kubelet(path="/var/lib/kubelet", found=True, pods=True, registration=True), True),
        (Kubelet(path="/var/lib/kubelet", found=False, configuration="/var/lib/k0s/kubelet"), True),
    ],
)
def test_a_machine_is_a_node_where_kubelet_runs(kubelet: Kubelet, is_node: bool) -> None:
    """Not where a directory of its name is left, as on a laptop that once ran a cluster."""
    assert kubelet.runs_here == is_node
