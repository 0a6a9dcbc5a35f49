"""Renders the Karpenter NodePool (karpenter.sh/v1) whose nodes a Workspace's servers fit.

Its nodes start with the startup taint, which pods needn't tolerate: it goes when the models that are pinned to the node
are verified. Karpenter takes the cheapest of the capacity types listed, another where one is short, and goes back by
consolidation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from cache_agent.api.kube_objects import parse_quantity
from cache_agent.api.shared_names import STARTUP_TAINT
from modelimage.errors import InvalidInput
from workspace.hardware import Gpu, Hardware
from workspace.node_demands import (
    CAPACITY_TYPE,
    CLOUDS,
    GPU_PRESENT,
    SPOT_TAINTS,
    Cloud,
    gpu_terms,
    smallest_node,
)
from workspace.node_pools import OFFERED, POOL_LABEL
from workspace.provisioning_spec import Spot
from workspace.render import names
from workspace.render.kubernetes import wanted_range
from workspace.render.pod import RESOURCE_NAMES
from workspace.render.quantities import total_bytes
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
# The memory of the smallest instance type that fits is less than this many times what is asked for.
_NODE_MEMORY: Final = 2
_NO_SCHEDULE: Final = "NoSchedule"
_ARCHITECTURE: Final = "kubernetes.io/arch"
# Domains whose labels Karpenter lets no pool give, and those below them that it does.
_RESERVED: Final = ("kubernetes.io", "k8s.io", "karpenter.sh")
_OPEN: Final = ("node.kubernetes.io", "node-restriction.kubernetes.io", "kops.k8s.io")
# What GPU and node feature discovery find on a node, which a pool can't promise.
_DISCOVERED: Final = ("nvidia.com/", "feature.node.kubernetes.io/")


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
    cloud, resources = cloud_of(kind), workspace.spec.resources
    labels, selected = _selection(resources.node_selector, cloud)
    if release.plan.gpus:
        labels[GPU_PRESENT] = "true"
    taints = pool_taints(workspace, gpus=release.plan.gpus)
    return {
        "apiVersion": "karpenter.sh/v1",
        "kind": "NodePool",
        "metadata": {
            "name": resources.node_selector.get(POOL_LABEL) or _pool_name(workspace),
            "labels": names.labels(workspace.name),
        },
        "spec": {
            "template": {
                **({"metadata": {"labels": labels}} if labels else {}),
                "spec": {
                    "nodeClassRef": {"group": cloud.node_class[0], "kind": kind, "name": name},
                    "requirements": [
                        *_requirements(workspace, hardware, cloud, release.plan.node_gpus),
                        *selected,
                    ],
                    **({"taints": taints} if taints else {}),
                    "startupTaints": [{"key": STARTUP_TAINT, "effect": _NO_SCHEDULE}],
                },
            },
            "disruption": {
                "consolidationPolicy": "WhenEmptyOrUnderutilized",
                "consolidateAfter": _CONSOLIDATE_AFTER,
                "budgets": [{"nodes": "1"}],
            },
            "limits": _limits(workspace, release, hardware, cloud),
        },
    }


def pool_taints(workspace: Workspace, *, gpus: int) -> list[Json]:
    """The taints of the pool's nodes: the GPU's, and those that the spec tolerates by key and value.

    A toleration of every value tells of no taint, and clouds themselves put theirs on spot nodes.
    """
    resources = workspace.spec.resources
    vendor = RESOURCE_NAMES[resources.vendor]
    found: dict[str, Json] = {}
    if gpus:
        found[vendor] = {"key": vendor, "value": "true", "effect": _NO_SCHEDULE}
    for each in resources.tolerations:
        named = each.key and each.operator == "Equal" and each.value
        if not named or each.effect not in (None, _NO_SCHEDULE) or each.key in SPOT_TAINTS:
            continue
        taint = {"key": each.key, "value": each.value, "effect": _NO_SCHEDULE}
        # A node has one taint of a key and an effect; the spec's own word on the GPU's taint holds.
        if each.key == vendor or each.key not in found:
            found[str(each.key)] = taint
    return list(found.values())


def _pool_name(workspace: Workspace) -> str:
    """NodePools have no namespace, so its name has."""
    namespace = workspace.metadata.namespace
    return f"{namespace}.{workspace.name}" if namespace else workspace.name


def _selection(selector: Mapping[str, str], cloud: Cloud) -> tuple[dict[str, str], list[Json]]:
    """The node selector as labels that the pool gives its nodes, and as requirements where instance types have them.

    Raises InvalidInput for a label that neither gives.
    """
    labels: dict[str, str] = {}
    requirements = []
    for key, value in sorted(selector.items()):
        domain = key.partition("/")[0] if "/" in key else ""
        if key in OFFERED or domain == cloud.node_class[0]:
            requirements.append({"key": key, "operator": "In", "values": [value]})
        elif _is_foreign(key, domain):
            raise InvalidInput(
                f"no pool of {cloud.node_class[1]} gives its nodes the label {key} of spec.resources.nodeSelector",
                hint="Select by a label of your own, which the pool then gives; GPUs are chosen by spec.resources.gpu.",
            )
        elif key != POOL_LABEL:
            labels[key] = value
    return labels, requirements


def _is_foreign(key: str, domain: str) -> bool:
    """Whether nodes have the label from others: another cloud, Kubernetes itself, or what is discovered on them."""
    # The pool's own name, and what the chart's agents select nodes by: the pool gives its nodes both.
    if key in (POOL_LABEL, GPU_PRESENT):
        return False
    others = any(domain == each.node_class[0] for each in CLOUDS)
    reserved = any(domain == each or domain.endswith(f".{each}") for each in _RESERVED)
    own = any(domain == each or domain.endswith(f".{each}") for each in _OPEN)
    return others or key.startswith(_DISCOVERED) or (reserved and not own)


def _limits(workspace: Workspace, release: Release, hardware: Hardware, cloud: Cloud) -> Json:
    """What replicas, their replacements and spares need, in whole nodes: Karpenter makes none that is over a limit."""
    resources, plan = workspace.spec.resources, release.plan
    servers = max(1, wanted_range(workspace)[1]) * _BESIDE * plan.nodes
    spares = resources.provisioning.warm_spares if resources.provisioning else 0
    if not plan.gpus:
        asked = parse_quantity(resources.memory) if resources.memory else release.memory_bytes
        return {"memory": total_bytes(asked * _NODE_MEMORY * (servers + spares))}
    size = smallest_node(cloud, _pooled_gpu(hardware), plan.node_gpus)
    if size is None:
        raise InvalidInput(
            f"{cloud.node_class[1]} has no instance type with {plan.node_gpus} GPUs like {_pooled_gpu(hardware).name}",
            hint="Share them between nodes by spec.resources.nodes, or name a larger GPU in spec.resources.gpu.",
        )
    # Two at least: a server's replacement runs on another node where its own goes.
    nodes = max(_BESIDE * plan.nodes, -(-servers // (size // plan.node_gpus)))
    return {RESOURCE_NAMES[resources.vendor]: str((nodes + spares) * size)}


def _requirements(workspace: Workspace, hardware: Hardware, cloud: Cloud, gpus: int) -> list[Json]:
    resources = workspace.spec.resources
    capacity = resources.provisioning.capacity if resources.provisioning else None
    types = _CAPACITY[capacity.spot if capacity else Spot.PREFERRED]
    found = [{"key": CAPACITY_TYPE, "operator": "In", "values": list(types)}]
    if not gpus:
        # Karpenter takes any architecture, the cheapest first, unless a requirement names one.
        if _ARCHITECTURE not in resources.node_selector:
            found.append({"key": _ARCHITECTURE, "operator": "In", "values": ["amd64"]})
        return found
    gpu = _pooled_gpu(hardware)
    terms = gpu_terms(gpu, gpus, (cloud,))
    if not terms:
        raise InvalidInput(
            f"{cloud.node_class[1]} has no instance type with {gpu.name}",
            hint="Name another GPU in spec.resources.gpu, or write the pool by hand.",
        )
    return found + terms[0]


def _pooled_gpu(hardware: Hardware) -> Gpu:
    """The GPU that was planned for. Raises InvalidInput for one that no cloud's labels are known for."""
    if hardware.gpu is None or hardware.gpu.vendor is not Vendor.NVIDIA:
        raise InvalidInput(
            "node pools are derived for NVIDIA GPUs and CPUs",
            hint="Write the pool by hand, with the instance types that have the device.",
        )
    return hardware.gpu
