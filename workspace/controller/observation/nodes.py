"""Node facts: which nodes a Workspace may use, their accelerators, and which of them to warm.

Pure functions of Node objects. GPU models come from the labels of NVIDIA's GPU feature discovery and AMD's node
labeller; a Workspace that names its GPU needs neither.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from cache_agent.api.kube_objects import parse_quantity
from cache_agent.api.shared_names import MODEL_LABELS
from modelimage.bounds import parse_count
from modelimage.cpus import FLAGS
from modelimage.errors import InvalidInput
from workspace.controller.observation.node_signs import Departure, departure_of, has_registered
from workspace.controller.observation.objects import condition
from workspace.hardware import Gpu, Hardware, find_gpu, requested_hardware
from workspace.node_demands import demanded_terms
from workspace.node_terms import match
from workspace.render import names
from workspace.render.pod import gpu_resource, tolerations
from workspace.schema import Resources, Vendor

Json = dict[str, Any]

_MIB: Final = 1 << 20
_CORDON: Final = {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}
_MOST_DEVICES: Final = 1024  # GPUs of one node
# Node feature discovery's labels of a CPU's instruction sets: `<prefix>AVX512F: "true"`.
_CPU_FEATURE: Final = "feature.node.kubernetes.io/cpu-cpuid."


@dataclass(frozen=True, slots=True)
class KubeNode:
    """The facts read from a Node. `held` are its model labels, from its NodeCache if there is one.

    A `usable` node takes new pods; `departure` says whether it goes, `deleted` that it won't stay. `read_rate` is its
    rate of reading weights in bytes a second, if its agent measured one.
    """

    name: str
    labels: Mapping[str, str]
    taints: tuple[Json, ...]
    allocatable: Mapping[str, str]
    usable: bool
    ready: bool = True
    departure: Departure = Departure.NONE
    deleted: bool = False
    uid: str = ""
    held: frozenset[str] = frozenset()
    # Not compared: a new measurement alone must not requeue Workspaces.
    read_rate: float | None = field(default=None, compare=False)

    @classmethod
    def from_document(cls, document: Json) -> KubeNode:
        spec, status = document.get("spec") or {}, document.get("status") or {}
        ready = condition(document, "Ready").get("status") == "True"
        labels = document["metadata"].get("labels") or {}
        departure = departure_of(document)
        stays = departure is Departure.NONE and has_registered(document)
        return cls(
            name=document["metadata"]["name"],
            # Model labels are only in `held`, so that a NodeCache can replace them.
            labels={k: v for k, v in labels.items() if not k.startswith(MODEL_LABELS)},
            taints=_taints(spec),
            allocatable=status.get("allocatable") or {},
            usable=ready and stays,
            ready=ready,
            departure=departure,
            deleted=bool(document["metadata"].get("deletionTimestamp")),
            uid=str(document["metadata"].get("uid", "")),
            held=frozenset(
                k for k, v in labels.items() if k.startswith(MODEL_LABELS) and v == names.READY
            ),
        )

    def taken_back(self) -> KubeNode:
        """The node, if it goes, as one whose instance the cloud takes back."""
        goes = self.departure is not Departure.NONE
        return replace(self, departure=Departure.INTERRUPTED) if goes else self

    def count(self, resource: str) -> int:
        """The number of an extended resource that pods can request here."""
        return parse_count(str(self.allocatable.get(resource, "0")), most=_MOST_DEVICES) or 0

    def holds(self, label: str) -> bool:
        return label in self.held

    def has(self, label: str, value: str) -> bool:
        """Whether the node has a label, model labels included."""
        return self.labels.get(label) == value or (value == names.READY and self.holds(label))


def eligible(nodes: Iterable[KubeNode], resources: Resources, *, gpus: int) -> list[KubeNode]:
    """Nodes that could run a pod with `gpus` GPUs, sorted by name."""
    terms = demanded_terms(resources, gpus=gpus)
    accepted = tolerations(resources, gpus=gpus)
    return sorted(
        (
            node
            for node in nodes
            # The scheduler's own predicates: a node that it would refuse must not be waited for to become warm.
            if node.usable
            and all(node.has(k, v) for k, v in resources.node_selector.items())
            and match(terms, node.labels)
            and tolerates_all(accepted, node.taints)
            and (not gpus or node.count(gpu_resource(resources)) >= gpus)
        ),
        key=lambda node: node.name,
    )


def hardware(nodes: Iterable[KubeNode], resources: Resources) -> Hardware:
    """The hardware of a replica: from the spec, else the weakest GPU or CPU among the nodes it could run on.

    Raises InvalidInput when neither determines the GPU.
    """
    if resources.gpus == 0:
        possible = eligible(nodes, resources, gpus=0)
        return replace(requested_hardware(resources), cpus=_cpus(possible))
    if resources.gpu or resources.gpu_memory or resources.mig_profile:
        return requested_hardware(resources)
    least = resources.node_gpus or 1
    found = [
        (gpu, node.count(gpu_resource(resources)))
        for node in eligible(nodes, resources, gpus=least)
        if (gpu := _gpu(node, resources.vendor)) is not None
    ]
    if not found:
        raise InvalidInput(
            f"no usable node has a label for its {resources.vendor.value} GPU",
            hint="Set spec.resources.gpu (such as L4) or gpuMemory, or install the vendor's feature discovery.",
        )
    # The weakest, since the scheduler may put a replica on any of these nodes.
    weakest = min((gpu for gpu, _ in found), key=lambda gpu: (gpu.memory_bytes, gpu.capability))
    # With the fewest of any: a pod that asks for more fits some of the nodes only.
    most = min(count for _, count in found) * resources.nodes
    return Hardware(weakest, resources.gpus or most)


def read_rate(nodes: Iterable[KubeNode], resources: Resources) -> float | None:
    """The slowest measured read rate of the nodes that a replica could run on; None when none was measured."""
    least = 1 if resources.node_gpus is None else resources.node_gpus
    rates = (node.read_rate for node in eligible(nodes, resources, gpus=least))
    return min((rate for rate in rates if rate), default=None)


def choose_warm(
    candidates: Sequence[KubeNode], count: int, *, label: str, preference: Sequence[set[str]]
) -> list[KubeNode]:
    """The nodes that should hold a model, in order of the preference sets, then of a hash."""

    # Hashed with the label: each model gets an order of its own, so models spread over the nodes,
    # and the choice stays the same between calls.
    def spread(node: KubeNode) -> bytes:
        return hashlib.sha256(f"{label}/{node.name}".encode()).digest()

    chosen: list[KubeNode] = []
    left = list(candidates)
    for wanted in (*preference, {node.name for node in candidates}):
        if len(chosen) >= count:
            break
        found = [node for node in left if node.name in wanted]
        chosen += sorted(found, key=spread)[: count - len(chosen)]
        left = [node for node in left if node.name not in wanted]
    return chosen


def _cpus(nodes: Sequence[KubeNode]) -> tuple[frozenset[str], ...]:
    """The instruction sets of each node's CPU; empty unless node feature discovery labelled every node."""
    found = {
        frozenset(
            flag for flag in FLAGS if node.labels.get(_CPU_FEATURE + _feature(flag)) == "true"
        )
        for node in nodes
    }
    return tuple(sorted(found, key=sorted)) if all(found) else ()


def _feature(flag: str) -> str:
    """Node feature discovery's name of a CPU flag: AMXTILE for Linux's amx_tile."""
    return flag.replace("_", "").upper()


def _gpu(node: KubeNode, vendor: Vendor) -> Gpu | None:
    labels = node.labels
    if vendor is Vendor.NVIDIA:
        return _nvidia(labels)
    if vendor is Vendor.AMD:
        memory, name = labels.get("amd.com/gpu.vram"), labels.get("amd.com/gpu.product-name", "AMD")
        known = find_gpu(name)
        if memory:
            # AMD's labeller writes GiB as `G`.
            return Gpu(name, _bytes(f"{memory}i" if memory.endswith("G") else memory), 0, vendor)
        return known
    return None


def _nvidia(labels: Mapping[str, str]) -> Gpu | None:
    product = labels.get("nvidia.com/gpu.product", "")
    memory = parse_count(labels.get("nvidia.com/gpu.memory"))
    known = find_gpu(product) if product else None
    if memory is None:
        return known
    capability = known.capability if known else 0
    major, minor = (
        parse_count(labels.get(f"nvidia.com/gpu.compute.{part}"), most=99)
        for part in ("major", "minor")
    )
    if major is not None and minor is not None:
        capability = major * 10 + minor
    return Gpu(product or "NVIDIA GPU", memory * _MIB, capability)


def _bytes(text: str) -> int:
    try:
        return parse_quantity(text)
    except ValueError as error:
        raise InvalidInput(f"a node's label says its GPU has {text!r} of memory") from error


def tolerates_all(accepted: Sequence[Json], taints: Iterable[Json]) -> bool:
    """Whether pods with these tolerations may be placed on a node with these taints."""
    return all(tolerates(accepted, taint) for taint in taints)


def tolerates(accepted: Iterable[Json], taint: Json) -> bool:
    """Whether pods with these tolerations may be placed on a node with a taint."""
    # The scheduler only ranks by such a taint.
    if taint.get("effect") == "PreferNoSchedule":
        return True
    return any(_tolerates(each, taint) for each in accepted)


def _taints(spec: Json) -> tuple[Json, ...]:
    """A Node's taints, that of a cordon among them, which its lifecycle controller adds a moment later."""
    taints = tuple(spec.get("taints") or ())
    is_told = any(each.get("key") == _CORDON["key"] for each in taints)
    return (*taints, _CORDON) if spec.get("unschedulable") and not is_told else taints


def _tolerates(toleration: Json, taint: Json) -> bool:
    # Kubernetes' rule: what a toleration leaves out matches any, but `Equal`, the default, needs a key.
    if toleration.get("effect") not in (None, taint.get("effect")):
        return False
    if toleration.get("key") not in (None, taint.get("key")):
        return False
    if toleration.get("operator") == "Exists":
        return True
    return "key" in toleration and toleration.get("value") == taint.get("value")
