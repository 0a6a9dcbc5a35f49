"""How many servers a Workspace should have, whoever decides that: its spec, a scaler, or another program. Pure."""

from __future__ import annotations

from workspace.controller.observation.observed import KEDA_GROUP, Observed
from workspace.controller.rollouts.rollout_view import rollout_before
from workspace.render import names
from workspace.render.kubernetes import wanted_range
from workspace.rollout_spec import Strategy
from workspace.rollout_status import RolloutPhase
from workspace.scale_spec import Autoscaler
from workspace.schema import Workspace


def is_external(workspace: Workspace) -> bool:
    """Whether another program replaces one version by the next, and owns replicas and weights."""
    return workspace.spec.rollout.strategy is Strategy.EXTERNAL


def is_scaled_elsewhere(workspace: Workspace) -> bool:
    """Whether something else owns the Deployment's number of replicas."""
    scale = workspace.spec.scale
    by_other = scale is not None and scale.by is not Autoscaler.BUILTIN
    return by_other or is_external(workspace)


def is_keda_missing(workspace: Workspace, observed: Observed) -> bool:
    """Whether the spec has KEDA scale, in a cluster that doesn't have it."""
    scale = workspace.spec.scale
    by_keda = scale is not None and scale.by is Autoscaler.KEDA
    return by_keda and KEDA_GROUP not in observed.groups


def replica_goal(workspace: Workspace, observed: Observed, current: int | None) -> int:
    """The desired number of servers, regardless of how many may start now.

    `current` are those that the Workspace's own Deployments were asked for; None without one.
    """
    least, most = wanted_range(workspace)
    exists, current = current is not None, current or 0
    if is_external(workspace):
        # Its servers may be another object's, such as a Rollout's, beside a Deployment of none. What an own rollout has
        # left beside it stands in for servers that it lacks.
        if not exists or observed.find("Deployment", names.candidate(workspace.name)):
            return max(least, current)
        return max(current, len(observed.pods(names.SERVER)))
    if is_scaled_elsewhere(workspace):
        return max(least, min(most, current))
    if workspace.spec.scale is None:
        return least
    # Before the scaler's first result (after a restart) the current number is kept.
    wanted = current if observed.wanted is None else observed.wanted
    before = rollout_before(observed.document)
    unfinished = before is not None and before.phase is not RolloutPhase.COMPLETED
    # Meanwhile the Deployment may have fewer, since servers of a new version stand in for them.
    if observed.wanted is None and before is not None and unfinished:
        wanted = max(wanted, before.replicas)
    return max(least, min(most, wanted))
