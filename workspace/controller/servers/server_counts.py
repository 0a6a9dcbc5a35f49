"""How many servers the Workspace's Deployments are asked for, and how many evictions must leave. Pure.

Three things change the numbers that a scaler or a spec wants: nodes that don't hold the model yet, servers that must
not run on spot capacity, and nodes that go.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from workspace.controller.observation.cluster_state import CachedState, by_capacity
from workspace.controller.observation.objects import (
    as_started,
    group_of,
    is_candidate,
    is_ready,
    is_rolling,
)
from workspace.controller.observation.observed import Annotate, Delete, Observed
from workspace.controller.observation.revisions import Revision
from workspace.controller.servers.drain_patience import patience
from workspace.controller.servers.pod_marks import (
    COST,
    DO_NOT_DISRUPT,
    deletion_costs,
    disruption_marks,
    is_cheapest,
    marking,
)
from workspace.controller.servers.replacements import (
    Departures,
    departures,
    interrupted,
    least_ready,
    surge,
)
from workspace.controller.servers.replica_goal import is_external, is_scaled_elsewhere
from workspace.controller.servers.shares import Shares, divided, floor, moved
from workspace.node_demands import is_spot
from workspace.render import names
from workspace.render.routing import Budgets, ServerPart
from workspace.schema import Workspace

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ServerCounts:
    """What Deployments are asked for, and the surge that replaces servers on nodes that go.

    In `wake_after` seconds time alone lowers `least_ready`; None if it doesn't.
    """

    asked: Shares = field(default_factory=Shares)
    surge: Shares = field(default_factory=Shares)
    least_ready: Budgets = field(default_factory=dict)
    gone: Departures = field(default_factory=Departures)
    wake_after: float | None = None

    @property
    def autoscaler_least(self) -> int:
        """The replicas below which no autoscaler of the cluster's may go: it would take the surge away."""
        return self.asked.total + self.surge.total if self.surge.total else 0


def server_counts(
    workspace: Workspace, observed: Observed, *, active: Revision, state: CachedState, goal: int, allowed: Shares,
    before: Shares,
) -> ServerCounts:  # fmt: skip
    """The numbers for a version that runs. `allowed` may run now, of `goal`; `before` was asked for last."""
    servers = _own_servers(observed)
    rest, beside = by_capacity(servers)
    gone = departures(observed.nodes, active.resources, gpus=active.gpus)
    asked = allowed
    more = Shares()
    if not is_external(workspace):
        ready = Shares(sum(map(is_ready, rest)), sum(map(is_ready, beside)))
        asked = moved(allowed, before, ready, total=goal)
        if _can_replace(workspace, servers, active, state):
            more = _surge(servers, gone, asked)
    wanted = divided(goal, floor(workspace, active, goal))
    # What still stands in for the other part's servers stays too.
    parts = (
        (ServerPart.REST, rest, max(wanted.rest, asked.rest)),
        (ServerPart.ON_DEMAND, beside, max(wanted.on_demand, asked.on_demand)),
    )
    made_by = zip(parts, names.with_on_demand(workspace.name), strict=True)
    waits = {
        part: _waits(workspace, observed, [deployment], pods, gone)
        for (part, pods, _), deployment in made_by
    }
    least = {
        part: _least_ready(workspace, pods, gone, state, goal, needed=needed, waits=waits[part])
        for part, pods, needed in parts
    }
    # A wait of 0 is over, and counted above already: waking up for it would never end.
    wake_after = min(filter(None, waits.values()), default=None)
    return ServerCounts(asked, more, least, gone, wake_after)


def candidate_counts(
    workspace: Workspace, observed: Observed, *, candidate: Revision, state: CachedState, count: int
) -> ServerCounts:
    """The numbers for a new version's servers beside the Workspace's own, of which `count` may run now.

    Requests may depend on them as on the others, so a drain moves them in the same way. Evictions count them as one
    part.
    """
    servers = _candidates(observed)
    gone = departures(observed.nodes, candidate.resources, gpus=candidate.gpus)
    asked = divided(count, floor(workspace, candidate, count))
    replaced = _can_replace(workspace, servers, candidate, state)
    more = _surge(servers, gone, asked) if replaced else Shares()
    made_by = names.with_on_demand(names.candidate(workspace.name))
    waits = _waits(workspace, observed, made_by, servers, gone)
    least = _least_ready(workspace, servers, gone, state, count, needed=count, waits=waits)
    return ServerCounts(asked, more, {ServerPart.CANDIDATE: least}, gone, waits or None)


def pod_marks(
    workspace: Workspace, observed: Observed, *, own: ServerCounts, deployed: Shares, candidates: ServerCounts,
    deployed_candidates: Shares,
) -> list[Annotate]:  # fmt: skip
    """The annotations of servers and pre-warm pods to write. `deployed…` are the Deployments' numbers of replicas."""
    spot = [node.name for node in observed.nodes if is_spot(node.labels)]
    by_other = workspace.spec.scale is not None and is_scaled_elsewhere(workspace)
    costs: dict[str, str | None] = {}
    for servers, counts, there in (
        (_own_servers(observed), own, deployed),
        (_candidates(observed), candidates, deployed_candidates),
    ):
        # A StatefulSet, which keeps groups, has an order of its own.
        rest, beside = by_capacity(pod for pod in servers if group_of(pod) is None)
        others_scale = by_other and counts is own
        for pods, before, after in (
            (rest, there.rest, counts.asked.rest + counts.surge.rest),
            (beside, there.on_demand, counts.asked.on_demand + counts.surge.on_demand),
        ):
            costs |= deletion_costs(
                pods, counts.gone, spot=spot, running=observed.running, ordered=others_scale or after < before
            )  # fmt: skip
    servers = observed.pods(names.SERVER)
    pods = [
        *servers,
        *as_started(observed.pods(names.WORKER), servers),
        *observed.pods(names.PREWARM),
    ]
    marked = disruption_marks(
        pods, own.gone, observed.mounts, marked=workspace.spec.resources.by_karpenter
    )
    return marking(pods, {COST: costs, DO_NOT_DISRUPT: marked})


def ended_servers(workspace: Workspace, observed: Observed, counts: ServerCounts) -> list[Delete]:
    """The servers to delete because their node ends. Those of another program's objects are left to it."""
    if is_external(workspace):
        return []
    return interrupted(
        observed.pods(names.SERVER), counts.gone, workers=observed.pods(names.WORKER)
    )


def _own_servers(observed: Observed) -> list[Json]:
    """The servers that aren't those of a new version beside them."""
    return [pod for pod in observed.pods(names.SERVER) if not is_candidate(pod)]


def _candidates(observed: Observed) -> list[Json]:
    return [pod for pod in observed.pods(names.SERVER) if is_candidate(pod)]


def _surge(servers: list[Json], gone: Departures, asked: Shares) -> Shares:
    rest, beside = by_capacity(servers)
    marked = all(is_cheapest(pod) for pod in servers if gone.drains(pod))
    return Shares(
        surge(rest, gone, wanted=asked.rest, marked=marked),
        surge(beside, gone, wanted=asked.on_demand, marked=marked),
    )


def _can_replace(
    workspace: Workspace, servers: list[Json], active: Revision, state: CachedState
) -> bool:
    """Whether servers on nodes that go are replaced by a surge."""
    # Replacing one version by the next in place brings replacements itself.
    return not is_rolling(servers, active.id) and _has_place(workspace, state)


def _waits(
    workspace: Workspace,
    observed: Observed,
    deployments: Iterable[str],
    servers: list[Json],
    gone: Departures,
) -> float | None:
    """Seconds for which a drain of these may still wait for others; None while none is drained, or nothing is wrong."""
    if not any(map(gone.drains, servers)):
        return None
    others = [pod for pod in servers if not gone.takes(pod)]
    makes_nodes = workspace.spec.resources.makes_nodes
    return patience(others, observed, deployments=deployments, makes_nodes=makes_nodes)


def _least_ready(
    workspace: Workspace, servers: list[Json], gone: Departures, state: CachedState, goal: int, *, needed: int,
    waits: float | None,
) -> int | None:  # fmt: skip
    """How many of a part's servers evictions must leave ready. `goal` is that of all."""
    if not is_external(workspace) and needed:
        replaceable = _has_place(workspace, state) and (waits is None or waits > 0)
        least = least_ready(servers, gone, wanted=needed, replaceable=replaceable)
        if least is not None:
            return least
    # The only server is kept from the first moment of a drain, which evicts when it has cordoned. Karpenter tells
    # before unless it deletes a node at once, and never moves pods of its own accord that can't be evicted.
    only = goal == 1 and any(map(is_ready, servers)) and bool(state.eligible)
    return 1 if only and not workspace.spec.resources.by_karpenter else None


def _has_place(workspace: Workspace, state: CachedState) -> bool:
    return bool(state.eligible) or workspace.spec.resources.makes_nodes
