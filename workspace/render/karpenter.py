"""Renders the Karpenter NodePool (karpenter.sh/v1) whose nodes a Workspace's servers fit.

Its nodes start with the startup taint, which pods needn't tolerate: it goes when the models that are pinned to the node
are verified. Karpenter takes the cheapest of the capacity types listed, another where one is short, and goes back by
consolidation.
"""

from __future__ import annotations

from typing import Any, Final

from cache_agent.api.shared_names import STARTUP_TAINT
from modelimage.errors import InvalidInput
from workspace.hardware import Hardware
from workspace.node_demands import CAPACITY_TYPE, CLOUDS, Cloud, gpu_terms
from workspace.provisioning_spec import Spot
from workspace.render import names
from workspace.render.kubernetes import wanted_range
from workspace.render.pod import RESOURCE_NAMES
from workspace.render.release import Release
from workspace.schema import Vendor, Workspace

Json = dict[str, Any]

_ON_DEMAND: Final = ("on-demand", "reserved")
_CAPACITY: Final = {
    Spot.ONLY: ("spot",),
    Spot.NEVER: _ON_DEMAND,
    Spot.PREFERRED: ("spot", *_ON_DEMAND),
}
# A server takes minutes to start, so its node isn't given up for a short lull, and one at a time.
_CONSOLIDATE_AFTER: Final = "10m"
# A server's replacement, and one of a new version, starts before it goes.
_BESIDE: Final = 2


def cloud_of(kind: str) -> Cloud:
    """The cloud with this kind of node class. Raises InvalidInput."""
    for cloud in CLOUDS:
        if cloud.node_class[1] == kind:
            return cloud
    known = ", ".join(sorted(cloud.node_class[1] for cloud in CLOUDS))
    raise InvalidInput(f"no node class of a known cloud: {kind}", hint=f"Known kinds are {known}.")


def node_pool(
    workspace: Workspace, release: Release, hardware: Hardware, *, node_class: str
) -> Json:
    """The NodePool. `node_class` is KIND/NAME, such as EC2NodeClass/gpu. Raises InvalidInput.

    `hardware` is what the release was planned for.
    """
    kind, _, name = node_class.partition("/")
    if not name:
        raise InvalidInput(
            f"not a node class: {node_class!r}",
            hint="Write it as KIND/NAME, such as EC2NodeClass/gpu.",
        )
    cloud = cloud_of(kind)
    gpus = release.plan.gpus
    most = _most_gpus(workspace, release)
    vendor = RESOURCE_NAMES[workspace.spec.resources.vendor]
    limits = {"limits": {vendor: str(most)}} if gpus else {}
    taints = [{"key": vendor, "value": "true", "effect": "NoSchedule"}] if gpus else []
    return {
        "apiVersion": "karpenter.sh/v1",
        "kind": "NodePool",
        "metadata": {
            "name": _pool_name(workspace),
            "labels": names.labels(workspace.name),
        },
        "spec": {
            "template": {
                "spec": {
                    "nodeClassRef": {"group": cloud.node_class[0], "kind": kind, "name": name},
                    "requirements": _requirements(
                        workspace, hardware, cloud, release.plan.node_gpus
                    ),
                    **({"taints": taints} if taints else {}),
                    "startupTaints": [{"key": STARTUP_TAINT, "effect": "NoSchedule"}],
                }
            },
            "disruption": {
                "consolidationPolicy": "WhenEmptyOrUnderutilized",
                "consolidateAfter": _CONSOLIDATE_AFTER,
                "budgets": [{"nodes": "1"}],
            },
            **limits,
        },
    }


def _most_gpus(workspace: Workspace, release: Release) -> int:
    """The GPUs of all nodes that the Workspace may need at once, its warm spares included."""
    plan, provisioning = release.plan, workspace.spec.resources.provisioning
    replicas = max(1, wanted_range(workspace)[1])
    spares = provisioning.warm_spares if provisioning else 0
    return plan.gpus * replicas * _BESIDE + plan.node_gpus * spares


def _pool_name(workspace: Workspace) -> str:
    """NodePools have no namespace, so its name has."""
    namespace = workspace.metadata.namespace
    return f"{namespace}.{workspace.name}" if namespace else workspace.name


def _requirements(workspace: Workspace, hardware: Hardware, cloud: Cloud, gpus: int) -> list[Json]:
    provisioning = workspace.spec.resources.provisioning
    capacity = provisioning.capacity if provisioning else None
    types = _CAPACITY[capacity.spot if capacity else Spot.PREFERRED]
    found = [{"key": CAPACITY_TYPE, "operator": "In", "values": list(types)}]
    if not gpus:
        return found
    if hardware.gpu is None or hardware.gpu.vendor is not Vendor.NVIDIA:
        raise InvalidInput(
            "node pools are derived for NVIDIA GPUs and CPUs",
            hint="Write the pool by hand, with the instance types that have the device.",
        )
    terms = gpu_terms(hardware.gpu, gpus, (cloud,))
    if not terms:
        raise InvalidInput(
            f"{cloud.node_class[1]} has no instance type with {hardware.gpu.name}",
            hint="Name another GPU in spec.resources.gpu, or write the pool by hand.",
        )
    return found + terms[0]
