"""Drains of nodes under servers that span several: what may replace such a server, and how long that is needed. Pure.

A StatefulSet counts its pods, so a LeaderWorkerSet of fewer groups loses the one with the highest number: that is the
replacement, and not the group whose node is drained. That one is made again on other nodes; until it is ready its
replacement serves.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from workspace.controller.observation.cluster_state import CachedState, server_count, serving_pods
from workspace.controller.observation.objects import group_of, is_ready, is_rolling, node_of
from workspace.controller.observation.observed import Observed
from workspace.controller.observation.revisions import Revision
from workspace.controller.servers.replacements import departures
from workspace.controller.servers.server_counts import ServerCounts
from workspace.controller.servers.shares import Shares
from workspace.render import names
from workspace.render.routing import ServerPart

Json = dict[str, Any]


def group_counts(
    observed: Observed, *, active: Revision, state: CachedState, workload: Json | None, goal: int, allowed: int
) -> ServerCounts:  # fmt: skip
    """The numbers for a version whose servers span nodes. `allowed` may run now, of `goal`."""
    gone = departures(observed.nodes, active.resources, gpus=active.node_gpus)
    _, ready = server_count(observed)
    if goal != 1 or not ready or not has_room(state, active, observed, goal=goal):
        return ServerCounts(Shares(allowed), gone=gone)
    needed = needs_replacement(observed, active, workload, goal=goal, drained=gone.leaving)
    # As for a server on its own: Karpenter tells before it drains, and leaves nodes alone whose pods can't be evicted.
    if active.resources.by_karpenter and not needed:
        return ServerCounts(Shares(allowed), gone=gone)
    # A rollout brings a replacement itself.
    rolls = is_rolling(serving_pods(observed), active.id)
    surges = not rolls and state.is_cached and needed
    # A server on several nodes goes with any of its pods, so all pods of its replacement have to be ready.
    return ServerCounts(
        Shares(allowed), Shares(int(surges)), {ServerPart.REST: 2 * active.nodes - 1}, gone
    )


def has_room(state: CachedState, active: Revision, observed: Observed, *, goal: int) -> bool:
    """Whether nodes could take a server beside those that are to stay."""
    taken = {node_of(pod) for pod in kept_pods(observed, active, goal=goal)}
    return len(set(state.eligible) - taken) >= active.nodes


def needs_replacement(
    observed: Observed, active: Revision, workload: Json | None, *, goal: int, drained: Set[str]
) -> bool:
    """Whether a surge server has to serve: one is on a drained node, or is being made again after it left it."""
    kept = kept_pods(observed, active, goal=goal)
    if any(node_of(pod) in drained for pod in kept):
        return True
    annotations = workload["metadata"].get("annotations") or {} if workload else {}
    if names.SURGE not in annotations:
        return False
    return sum(map(is_ready, kept)) < goal * active.nodes


def kept_pods(observed: Observed, active: Revision, *, goal: int) -> list[Json]:
    """The pods of servers, without those of surge groups."""
    # A server that is no group is one of a version before.
    return [pod for pod in serving_pods(observed) if (group_of(pod) or 0) < goal]
