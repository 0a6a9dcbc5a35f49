"""What a Workspace's servers demand of nodes that are yet to be made: spot capacity, and GPUs by each cloud's labels.

Autoscalers make nodes for pods that don't fit, by the pods' own demands. A count of GPUs alone gets the cheapest one,
which may be too small, so with Karpenter the pods name the planned GPU too. Labels and values: Karpenter's instance
types reference (AWS), EKS Auto Mode's, karpenter-provider-azure's `instancetype.go`, GKE's and AKS's pages on spot
nodes. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from workspace.hardware import GPUS, Gpu, requested_hardware
from workspace.node_terms import Term, both, is_above, is_in, is_not_in
from workspace.provisioning_spec import Capacity, Provisioning, Spot
from workspace.schema import Resources, Vendor

Json = dict[str, Any]

CAPACITY_TYPE: Final = "karpenter.sh/capacity-type"
# What each cloud labels spot nodes with.
_SPOT_LABELS: Final[Mapping[str, str]] = {
    CAPACITY_TYPE: "spot",
    "eks.amazonaws.com/capacityType": "SPOT",
    "cloud.google.com/gke-spot": "true",
    "kubernetes.azure.com/scalesetpriority": "spot",
}
# The taints that keep other pods off them; the chart's agents tolerate them too.
SPOT_TAINTS: Final = ("cloud.google.com/gke-spot", "kubernetes.azure.com/scalesetpriority")
# Below the preference for nodes that hold the model.
_SPOT_WEIGHT: Final = 50
_REQUIRED: Final = "requiredDuringSchedulingIgnoredDuringExecution"
_PREFERRED: Final = "preferredDuringSchedulingIgnoredDuringExecution"
# GPU feature discovery's labels: MiB of memory, and the compute capability's two numbers.
_MEMORY: Final = "nvidia.com/gpu.memory"
_MAJOR: Final = "nvidia.com/gpu.compute.major"
_MINOR: Final = "nvidia.com/gpu.compute.minor"
# That a node has NVIDIA GPUs, by GPU feature discovery; the chart's agents select by it.
GPU_PRESENT: Final = "nvidia.com/gpu.present"
# Kueue admits the pods of a Deployment with this label, and of its template.
_QUEUE: Final = "kueue.x-k8s.io/queue-name"
# Drivers keep some of a card's memory: an H100 of 80 GiB has the label 81559, an A10 of 22.5 GiB 23028.
_LABELLED_SHARE: Final = 0.95
# Clouds state the whole of it, or what is left, in either unit.
_STATED_SHARE: Final = 0.9
_MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Cloud:
    """A Karpenter provider's labels of an instance type's GPUs.

    `names` are its names of those in our table, `sizes` the numbers of GPUs that its instance types have of each name.
    """

    name: str
    count: str
    names: Mapping[str, tuple[str, ...]]
    sizes: Mapping[str, tuple[int, ...]]
    memory: str | None = None  # MiB of one GPU
    node_class: tuple[str, str] = field(default=("", ""))  # group and kind


_AWS_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "T4": ("t4",), "V100-16GB": ("v100",), "V100": ("v100",), "A10G": ("a10g",), "L4": ("l4",), "L40S": ("l40s",),
    "A100": ("a100",), "A100-80GB": ("a100",), "H100": ("h100",), "H200": ("h200",), "B200": ("b200",),
    "B300": ("b300",), "RTX-PRO-6000": ("rtx-pro-server-6000",),
}  # fmt: skip
# Of the instance types in Karpenter's reference: g4dn, p3, g5, g6, g6e, p4d and p4de, p5, p5e and p5en, p6, g7e.
_AWS_SIZES: Final[Mapping[str, tuple[int, ...]]] = {
    "t4": (1, 4, 8), "v100": (1, 4, 8), "a10g": (1, 4, 8), "l4": (1, 4, 8), "l40s": (1, 4, 8), "a100": (8,),
    "h100": (1, 8), "h200": (8,), "b200": (8,), "b300": (8,), "rtx-pro-server-6000": (1, 2, 4, 8),
}  # fmt: skip
# Azure's A10 may be a part of a card, and its A100 of either size, so neither is asked for by name alone.
_AZURE_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "T4": ("T4",), "V100-16GB": ("V100",), "A100": ("A100",), "H100": ("H100",), "H200": ("H200",),
}  # fmt: skip
# Of Azure's pages on its sizes: NCasT4_v3, NCv3 and NDv2, NCads_A100_v4 and ND_A100_v4, NCads_H100_v5 and ND_H100_v5,
# ND_H200_v5.
_AZURE_SIZES: Final[Mapping[str, tuple[int, ...]]] = {
    "T4": (1, 4), "V100": (1, 2, 4, 8), "A100": (1, 2, 4, 8), "H100": (1, 2, 8), "H200": (8,),
}  # fmt: skip
CLOUDS: Final = (
    Cloud(
        "karpenter.k8s.aws/instance-gpu-name", "karpenter.k8s.aws/instance-gpu-count", _AWS_NAMES, _AWS_SIZES,
        "karpenter.k8s.aws/instance-gpu-memory", ("karpenter.k8s.aws", "EC2NodeClass"),
    ),
    Cloud(
        "eks.amazonaws.com/instance-gpu-name", "eks.amazonaws.com/instance-gpu-count", _AWS_NAMES, _AWS_SIZES,
        "eks.amazonaws.com/instance-gpu-memory", ("eks.amazonaws.com", "NodeClass"),
    ),
    Cloud(
        "karpenter.azure.com/sku-gpu-name", "karpenter.azure.com/sku-gpu-count", _AZURE_NAMES, _AZURE_SIZES,
        node_class=("karpenter.azure.com", "AKSNodeClass"),
    ),
)  # fmt: skip


def is_spot(labels: Mapping[str, str]) -> bool:
    """Whether a node is on spot capacity, by its labels."""
    return any(labels.get(label) == value for label, value in _SPOT_LABELS.items())


def kept_off_spot(affinity: Json) -> Json:
    """A pod's affinity that demands capacity of another kind as well, and prefers no spot node any more."""
    found = dict(affinity.get("nodeAffinity") or {})
    required = (found.pop(_REQUIRED, None) or {}).get("nodeSelectorTerms") or ()
    terms: list[Term] = [each["matchExpressions"] for each in required]
    # Terms are alternatives, so the demand is added to each of them.
    found[_REQUIRED] = {
        "nodeSelectorTerms": [{"matchExpressions": term} for term in both(terms, [_elsewhere()])]
    }
    preferred = [each for each in found.pop(_PREFERRED, ()) if not _prefers_spot(each)]
    if preferred:
        found[_PREFERRED] = preferred
    return {**affinity, "nodeAffinity": found}


def takes_both(provisioning: Provisioning | None) -> bool:
    """Whether servers run on either kind of capacity, spot preferred."""
    return _spot(provisioning) is Spot.PREFERRED


def on_demand_share(provisioning: Provisioning | None, replicas: int) -> int:
    """How many of some replicas must run on capacity that isn't spot, by servers of their own."""
    capacity = provisioning.capacity if provisioning else None
    return min(replicas, capacity.on_demand_minimum) if capacity else 0


def off_spot(resources: Resources) -> Resources:
    """The same resources, on capacity that isn't spot."""
    provisioning = resources.provisioning or Provisioning()
    found = provisioning.model_copy(update={"capacity": Capacity(spot=Spot.NEVER)})
    return resources.model_copy(update={"provisioning": found})


def capacity_terms(provisioning: Provisioning | None) -> list[Term]:
    """The terms that capacity demands of any node."""
    spot = _spot(provisioning)
    if spot is Spot.NEVER:
        return [_elsewhere()]
    if spot is Spot.ONLY:
        return [[is_in(label, [value])] for label, value in _SPOT_LABELS.items()]
    return []


def capacity_preferences(provisioning: Provisioning | None) -> list[Json]:
    """The scheduler's preferences for spot nodes, which Karpenter too gives up where there is none to be had."""
    if _spot(provisioning) is not Spot.PREFERRED:
        return []
    return [
        {"weight": _SPOT_WEIGHT, "preference": {"matchExpressions": [is_in(label, [value])]}}
        for label, value in _SPOT_LABELS.items()
    ]


def capacity_tolerations(provisioning: Provisioning | None) -> list[Json]:
    """The tolerations of the taints that clouds put on spot nodes."""
    if _spot(provisioning) in (None, Spot.NEVER):
        return []
    return [{"key": key, "operator": "Exists", "effect": "NoSchedule"} for key in SPOT_TAINTS]


def queue_label(resources: Resources) -> dict[str, str]:
    """The label by which Kueue admits pods, if the spec names a queue."""
    provisioning = resources.provisioning
    return {_QUEUE: provisioning.queue} if provisioning and provisioning.queue else {}


def gpu_terms(gpu: Gpu, count: int, clouds: tuple[Cloud, ...] = CLOUDS) -> list[Term]:
    """The terms of instance types with `count` GPUs, or more, that are no smaller and no older than this one.

    Of clouds that have none of them there is no term.
    """
    return [term for cloud in clouds for term in _of_cloud(cloud, gpu, count)]


def smallest_node(cloud: Cloud, gpu: Gpu, count: int) -> int | None:
    """GPUs of the cloud's smallest instance type for a server with `count` of them: of this GPU if it has that, else of
    one that is no smaller and no older. None if all are too small."""
    for names in (cloud.names.get(gpu.name, ()), _fitting(cloud, gpu)):
        if sizes := [size for name in names for size in cloud.sizes[name] if size >= count]:
            return min(sizes)
    return None


def discovered_terms(gpu: Gpu) -> list[Term]:
    """The terms of nodes that stand already, by GPU feature discovery's labels: at least this memory and capability."""
    memory = is_above(_MEMORY, int(gpu.memory_bytes * _LABELLED_SHARE) // _MIB)
    return [[memory, *each] for each in _capabilities(gpu)]


def zone_spread(provisioning: Provisioning | None, selector: Mapping[str, str]) -> list[Json]:
    """Spreads servers over zones where their capacity may be taken back: a zone's is taken back together.

    Preferred only. Instance types are the provisioner's: spread over them, all but the first would be dearer ones.
    """
    if _spot(provisioning) in (None, Spot.NEVER):
        return []
    return [
        {
            "maxSkew": 1,
            "topologyKey": "topology.kubernetes.io/zone",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": dict(selector)},
        }
    ]


def demanded_terms(resources: Resources, *, gpus: int) -> list[Term]:
    """The terms of nodes for a server with this number of GPUs, beside the node selector."""
    terms, gpu = capacity_terms(resources.provisioning), _named_gpu(resources)
    if not resources.by_karpenter or gpu is None or not gpus:
        return terms
    # One of them must hold: a node that stands has no cloud's labels, a new one has no discovered ones yet.
    return both(terms, [*discovered_terms(gpu), *gpu_terms(gpu, gpus)])


def _elsewhere() -> Term:
    """The term of nodes that aren't on spot capacity."""
    return [is_not_in(label, [value]) for label, value in _SPOT_LABELS.items()]


def _prefers_spot(preference: Json) -> bool:
    listed = preference["preference"].get("matchExpressions") or ()
    return any(each["key"] in _SPOT_LABELS and each["operator"] == "In" for each in listed)


def _named_gpu(resources: Resources) -> Gpu | None:
    """The GPU that the spec names, where instance types have it whole."""
    if resources.vendor is not Vendor.NVIDIA or resources.mig_profile is not None:
        return None
    if resources.gpu is None and resources.gpu_memory is None:
        return None
    return requested_hardware(resources).gpu


def _capabilities(gpu: Gpu) -> list[Term]:
    """Alternatives that together mean `at least this capability`; one without conditions where it is unknown."""
    if not gpu.capability:
        return [[]]
    major, minor = divmod(gpu.capability, 10)
    if not minor:
        return [[is_above(_MAJOR, major - 1)]]
    return [[is_in(_MAJOR, [str(major)]), is_above(_MINOR, minor - 1)], [is_above(_MAJOR, major)]]


def _fitting(cloud: Cloud, gpu: Gpu) -> list[str]:
    """The cloud's names of GPUs that are no smaller and no older."""
    return sorted(
        {
            name
            for known, names in cloud.names.items()
            if GPUS[known].memory_bytes >= gpu.memory_bytes * _STATED_SHARE
            and GPUS[known].capability >= gpu.capability
            for name in names
        }
    )


def _of_cloud(cloud: Cloud, gpu: Gpu, count: int) -> list[Term]:
    fitting = _fitting(cloud, gpu)
    if not fitting:
        return []
    # A node with fewer GPUs can't take the server; Gt is the operator that Kubernetes' pods have.
    term = [is_in(cloud.name, fitting), is_above(cloud.count, count - 1)]
    if cloud.memory is not None:
        # A name may stand for cards of two sizes, and for parts of a card.
        term.append(is_above(cloud.memory, int(gpu.memory_bytes * _STATED_SHARE) // _MIB))
    return [term]


def _spot(provisioning: Provisioning | None) -> Spot | None:
    capacity = provisioning.capacity if provisioning else None
    return capacity.spot if capacity else None
