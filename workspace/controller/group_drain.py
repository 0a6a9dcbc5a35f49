"""Drains of nodes under servers that span several: what may replace such a server, and how long that is needed. Pure.

A StatefulSet counts its pods, so a LeaderWorkerSet of fewer groups loses the one with the highest number: that is the
replacement, and not the group whose node is drained. That one is made again on other nodes; until it is ready its
replacement serves.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from workspace.controller.cluster_state import CachedState, serving_pods
from workspace.controller.objects import is_ready, node_of
from workspace.controller.observed import Observed
from workspace.controller.revisions import Revision
from workspace.render import names

Json = dict[str, Any]


def has_room(state: CachedState, active: Revision, observed: Observed, *, goal: int) -> bool:
    """Whether nodes could take a server beside those that are to stay. A server on one node may share it."""
    if active.nodes == 1:
        return bool(state.eligible)
    taken = {node_of(pod) for pod in kept_pods(observed, active, goal=goal)}
    return len(set(state.eligible) - taken) >= active.nodes


def needs_replacement(
    observed: Observed, active: Revision, workload: Json | None, *, goal: int, drained: Set[str]
) -> bool:
    """Whether a surplus server has to serve: one is on a drained node, or is being made again after it left it."""
    kept = kept_pods(observed, active, goal=goal)
    if any(node_of(pod) in drained for pod in kept):
        return True
    annotations = workload["metadata"].get("annotations") or {} if workload else {}
    if active.nodes == 1 or names.SURGE not in annotations:
        return False
    return sum(map(is_ready, kept)) < goal * active.nodes


def kept_pods(observed: Observed, active: Revision, *, goal: int) -> list[Json]:
    """The pods of servers, without those of surplus groups."""
    pods = serving_pods(observed)
    if active.nodes == 1:
        return pods
    return [pod for pod in pods if _number(pod) < goal]


def _number(pod: Json) -> int:
    """A group's number; 0 for a server that is none, such as one of a version before."""
    found = str((pod["metadata"].get("labels") or {}).get(names.GROUP_INDEX, ""))
    return int(found) if found.isdecimal() and len(found) < 10 else 0
