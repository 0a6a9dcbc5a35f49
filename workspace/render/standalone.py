"""What files need that no controller looks after: nodes with the right GPUs, limits of memory, open metrics.

The controller knows its cluster and corrects itself; a rendered file is applied once, by someone else, elsewhere.
"""

from __future__ import annotations

from typing import Any, Final

from modelimage.errors import InvalidInput
from modelimage.reference import LayoutReference, parse_image
from workspace.hardware import Hardware
from workspace.node_demands import discovered_terms
from workspace.node_terms import Term
from workspace.render.quantities import canonical, total_bytes
from workspace.render.release import Release
from workspace.schema import Resources, Vendor, Workspace
from workspace.sources import image_of

Json = dict[str, Any]

# A server may need more than its estimate: the limit ends a leak, not a healthy server.
LIMIT_FACTOR: Final = 2
# A node selector with one of these says which GPUs its nodes have.
_TELLING_PREFIXES: Final = (
    "nvidia.com/", "amd.com/", "gpu.intel.com/", "aws.amazon.com/neuron", "feature.node.kubernetes.io/",
    "cloud.google.com/gke-accelerator", "cloud.google.com/gke-nodepool", "eks.amazonaws.com/nodegroup",
    "karpenter.k8s.aws/instance-", "karpenter.sh/nodepool", "kubernetes.azure.com/agentpool", "agentpool",
    "node.kubernetes.io/instance-type",
)  # fmt: skip


def check_reachable(workspace: Workspace, target: str) -> None:
    """Raises InvalidInput for images in a directory of this machine, which no node and no container has."""
    for text in (image_of(workspace), *(each.image for each in workspace.spec.runtime.adapters)):
        if isinstance(parse_image(text), LayoutReference):
            raise InvalidInput(
                f"{text} is a directory of this machine, which {target} can't read",
                hint=f"Copy it to a registry, `weightyard copy {text} REGISTRY/NAME:TAG`, and name that.",
            )


def demands_gpu(resources: Resources) -> bool:
    """Whether the node selector, or the kind of device itself, says which GPU the server gets."""
    return resources.mig_profile is not None or any(
        key.startswith(_TELLING_PREFIXES) for key in resources.node_selector
    )


def undemanded_gpu(workspace: Workspace, release: Release) -> str | None:
    """What the author must set for the server to get a GPU of the kind that it was planned for; None if nothing."""
    resources = workspace.spec.resources
    if not release.plan.gpus or demands_gpu(resources) or resources.vendor is Vendor.NVIDIA:
        return None
    return (
        f"nothing selects nodes with the {resources.vendor.value} GPU that this was planned for:"
        " set spec.resources.nodeSelector to a label that they have"
    )


def gpu_node_terms(workspace: Workspace, release: Release, hardware: Hardware) -> list[Term]:
    """Node selector terms, of which one must hold: at least the memory and the capability of the planned GPU.

    Empty where no GPU is used, the node selector demands one already, or no label is known for the vendor.
    """
    resources, gpu = workspace.spec.resources, hardware.gpu
    if not release.plan.gpus or gpu is None or demands_gpu(resources):
        return []
    if resources.by_karpenter:
        return []  # the pod's own affinity has them
    if gpu.vendor is not Vendor.NVIDIA or resources.vendor is not Vendor.NVIDIA:
        return []
    return discovered_terms(gpu)


def memory_limit(workspace: Workspace, release: Release) -> str:
    """The server's limit of memory, as a quantity: the spec's, else twice the estimate."""
    stated = workspace.spec.resources.memory
    return canonical(stated) if stated else total_bytes(LIMIT_FACTOR * release.memory_bytes)


def limited(resources: Json, limit: str) -> Json:
    """A container's resources with a limit of memory."""
    return {**resources, "limits": {**resources.get("limits", {}), "memory": limit}}
