"""The signs by which a Node shows that it goes soon, or isn't there yet: one table of everybody's taints. Pure.

Taints are their writers' words: Karpenter's `pkg/apis/v1/taints.go`; the Cluster Autoscaler's `utils/taints`;
aws-node-termination-handler's `pkg/node/node.go`; GKE's node termination handler; AKS's pages on node auto-drain and
node auto-repair, in both spellings.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, Final

from cache_agent.api.shared_names import STARTUP_TAINT

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
        for each in (
            "not-ready",
            "unreachable",
            "memory-pressure",
            "disk-pressure",
            "pid-pressure",
            "network-unavailable",
        )
    },
    STARTUP_TAINT: _Sign.SOFT,
    "remediator.aks.microsoft.com/unschedulable": _Sign.LEAVING,
    "remediator.kubernetes.azure.com/unschedulable": _Sign.LEAVING,
}
# Whole families: what isn't ready yet will be. The Node Readiness Controller's, and those of CSI and CNI agents.
_READINESS: Final = "readiness.k8s.io/"
_AGENT: Final = "/agent-not-ready"


def departure_of(node: Json) -> Departure:
    """Whether a Node goes, by the strongest of its signs.

    Karpenter deletes every Node that goes and keeps it until it is empty, whatever the reason: that alone says nothing
    of a notice.
    """
    metadata, spec = node["metadata"], node.get("spec") or {}
    signs = _signs(node)
    if _Sign.ENDING in signs:
        return Departure.INTERRUPTED
    is_deleted = bool(metadata.get("deletionTimestamp"))
    if _Sign.LEAVING in signs or is_deleted or spec.get("unschedulable"):
        return Departure.DRAINED
    return Departure.NONE


def has_registered(node: Json) -> bool:
    """Whether a Node has come as far as taking pods: until then its maker may still change its labels and taints."""
    return _Sign.STARTING not in _signs(node)


def lasting(taints: tuple[Json, ...]) -> tuple[Json, ...]:
    """The taints that may mean that a node's pods are to leave it: none that warns, passes, or ends with a start."""
    return tuple(each for each in taints if _sign(each) not in (_Sign.SOFT, _Sign.STARTING))


def _signs(node: Json) -> set[_Sign]:
    found = map(_sign, (node.get("spec") or {}).get("taints") or ())
    return {each for each in found if each is not None}


def _sign(taint: Json) -> _Sign | None:
    """What a taint says; None for one of somebody who isn't known here."""
    key = str(taint.get("key"))
    if key.startswith(_READINESS) or key.endswith(_AGENT):
        return _Sign.SOFT
    return _TAINTS.get(key)
