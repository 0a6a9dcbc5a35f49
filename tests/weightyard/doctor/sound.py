"""A node and a cluster where all is well, to be spoiled one thing at a time."""

from __future__ import annotations

from typing import Any

from weightyard.crds import definitions
from weightyard.doctor.cluster_checks import DRIVER_SPEC, ClusterFacts, Expected
from weightyard.doctor.facts import Clock, Containerd, DiskFacts, Gpus, HostFacts, Kubelet, Nic

Json = dict[str, Any]
TB = 10**12

NODE = HostFacts(
    node="gpu-1",
    kernel="6.8.0-45-generic",
    disk=DiskFacts(
        path="/var/lib/weightyard", filesystem="xfs", total=4 * TB, free=3 * TB, write_rate=2e9, read_rate=5e9,
        hard_links=True, nodefs=True, imagefs=True,
    ),
    kubelet=Kubelet(
        path="/var/lib/kubelet", found=True, registration=True, pods=True, shared=True,
        configuration="/var/lib/kubelet/config.yaml",
        eviction_hard={"nodefs.available": "10%", "imagefs.available": "15%", "memory.available": "100Mi"},
    ),
    clock=Clock(synchronized=True, error=0.002, offset=0.1),
    nics=(Nic(name="eth0", rate=100_000_000_000),),
    containerd=Containerd(configuration="/etc/containerd/config.toml", config_path="/etc/containerd/certs.d"),
    apparmor=True,
    cpu_flags=("avx2", "avx512f"),
    gpus=Gpus(driver="570.124.06", count=8, engine="vllm 0.32.0"),
    install="pip install 'weightyard[builder]'",
    extras=("builder", "convert", "evaluate", "gptq", "sign"),
)  # fmt: skip


def node(name: str = "gpu-1", **allocatable: str) -> Json:
    """A node as the API server has it."""
    return {
        "metadata": {"name": name, "labels": {"kubernetes.io/os": "linux", "nvidia.com/gpu.present": "true"}},
        "status": {
            "nodeInfo": {"containerRuntimeVersion": "containerd://1.7.20"},
            "allocatable": {"nvidia.com/gpu": "8"} | allocatable,
            "conditions": [{"type": "DiskPressure", "status": "False"}, {"type": "Ready", "status": "True"}],
        },
    }  # fmt: skip


def program(kind: str, name: str, ready: int, wanted: int, version: str = "1.2.3") -> Json:
    """A Deployment or DaemonSet of the chart."""
    counts = (
        {"numberReady": ready, "desiredNumberScheduled": wanted}
        if kind == "DaemonSet"
        else {"readyReplicas": ready}
    )
    labels = {"app.kubernetes.io/version": version}
    metadata = {"name": name, "labels": labels}
    return {"kind": kind, "metadata": metadata, "spec": {"replicas": wanted}, "status": counts}


def ours(
    kind: str, name: str, ready: str | None = "True", *, reason: str = "Ready", message: str = ""
) -> Json:
    """An object of one of our kinds with its condition Ready, or one that nobody has looked at yet."""
    found = [{"type": "Ready", "status": ready, "reason": reason, "message": message}]
    status = {"conditions": found} if ready else None
    return {"kind": kind, "metadata": {"name": name}, "status": status}


CRD_NAME = "workspaces.weightyard.dev"
DEFINITION = definitions()[CRD_NAME]
EXPECTED = Expected(definitions(), "nvidia.com/gpu.present=true", "1.2.3")
CLUSTER = ClusterFacts(
    version="v1.31.2",
    groups=frozenset({"apps", "keda.sh", "nvidia.com"}),
    nodes=(node("gpu-1"), node("gpu-2")),
    namespace="weightyard",
    namespace_labels={"pod-security.kubernetes.io/enforce": "privileged"},
    denied=(),
    driver={"spec": dict(DRIVER_SPEC)},
    driver_nodes=frozenset({"gpu-1", "gpu-2"}),
    crds=definitions(),
    admission_policies=True,
    programs=(
        program("Deployment", "weightyard-controller", 2, 2),
        program("DaemonSet", "weightyard-agent", 2, 2),
    ),
    caches=(ours("NodeCache", "gpu-1"), ours("NodeCache", "gpu-2")),
    served=(ours("Workspace", "chat"), ours("CachedModel", "chat")),
)
