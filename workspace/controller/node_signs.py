"""The signs by which a Node shows that it goes soon, or isn't there yet: one table of everybody's taints. Pure.

Taints are their writers' words: Karpenter's `pkg/apis/v1/taints.go`; the Cluster Autoscaler's `utils/taints`;
aws-node-termination-handler's `pkg/node/node.go`; GKE's node termination handler; AKS's pages on node auto-drain and
node auto-repair, in both spellings.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, Final

from workspace.node_demands import is_spot

Json = dict[str, Any]


class Departure(Enum):
    """Whether a node goes: it stays; pods are moved away, which waits for them; or it ends within a notice."""

    NONE = "none"
    DRAINED = "drained"
    INTERRUPTED = "interrupted"


class _Sign(Enum):
    """What a taint says: the node goes, it ends within minutes, it may go later, or it isn't registered yet."""

    LEAVING = "leaving"
    ENDING = "ending"
    SOFT = "soft"
    STARTING = "starting"


_NTH: Final = "aws-node-termination-handler"
_TAINTS: Final[Mapping[str, _Sign]] = {
    "karpenter.sh/disrupted": _Sign.LEAVING,
    "karpenter.sh/unregistered": _Sign.STARTING,
    "ToBeDeletedByClusterAutoscaler": _Sign.LEAVING,
    "DeletionCandidateOfClusterAutoscaler": _Sign.SOFT,  # taken back when the node is needed after all
    f"{_NTH}/spot-itn": _Sign.ENDING,
    f"{_NTH}/scheduled-maintenance": _Sign.LEAVING,
    f"{_NTH}/asg-lifecycle-termination": _Sign.LEAVING,
    f"{_NTH}/rebalance-recommendation": _Sign.SOFT,  # a greater risk, and no date
    "cloud.google.com/impending-node-termination": _Sign.ENDING,
    **{
        f"node.kubernetes.io/{each}": _Sign.SOFT  # Kubernetes' own: conditions that pass
        for each in ("memory-pressure", "disk-pressure", "pid-pressure", "network-unavailable")
    },
    "remediator.aks.microsoft.com/unschedulable": _Sign.LEAVING,
    "remediator.kubernetes.azure.com/unschedulable": _Sign.LEAVING,
}


def departure_of(node: Json, before: Departure = Departure.NONE) -> Departure:
    """Whether a Node goes, by the strongest of its signs. `before`: what it showed last.

    Karpenter deletes a Node and keeps it until it is empty. One that it replaces it taints first, and deletes it when
    the replacement is there; one whose instance the cloud takes back it deletes first.
    """
    metadata, spec = node["metadata"], node.get("spec") or {}
    signs = _signs(node)
    is_deleted = bool(metadata.get("deletionTimestamp"))
    was_announced = before is Departure.DRAINED and _Sign.LEAVING in signs
    is_taken = is_deleted and not was_announced and is_spot(metadata.get("labels") or {})
    if _Sign.ENDING in signs or is_taken:
        return Departure.INTERRUPTED
    if _Sign.LEAVING in signs or is_deleted or spec.get("unschedulable"):
        return Departure.DRAINED
    return Departure.NONE


def has_registered(node: Json) -> bool:
    """Whether a Node has come as far as taking pods: until then its maker may still change its labels and taints."""
    return _Sign.STARTING not in _signs(node)


def may_stay(taints: tuple[Json, ...]) -> bool:
    """Whether a node that takes no new pods may keep those that it has: one of its taints is a mere warning."""
    return any(_TAINTS.get(str(each.get("key"))) is _Sign.SOFT for each in taints)


def _signs(node: Json) -> set[_Sign]:
    taints = (node.get("spec") or {}).get("taints") or ()
    return {_TAINTS[key] for each in taints if (key := str(each.get("key"))) in _TAINTS}
