"""Servers of a version that isn't rolled out any more, which stand in for those that the Workspace's Deployment lacks.

At a high weight, or without room, that Deployment has fewer servers. An edit that ends the rollout gives it all of them
again, which takes the time of a start: until then those of the new version stay. Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from workspace.controller.observation.objects import (
    deployed_version,
    is_candidate,
    is_owned,
    is_ready,
)
from workspace.controller.observation.observed import Observed, Reference
from workspace.controller.observation.pod_problems import worst_problem
from workspace.controller.observation.revisions import version_id
from workspace.controller.reasons import Reason
from workspace.controller.rollouts.rollout_view import ActiveRollout
from workspace.controller.rollouts.route_view import usable_route
from workspace.render import names
from workspace.schema import Workspace

Json = dict[str, Any]


def left_servers(workspace: Workspace, observed: Observed) -> Json | None:
    """The Deployment beside the Workspace's own, if there is one."""
    found = observed.find("Deployment", names.candidate(workspace.name))
    return found if found is not None and is_owned(found, observed.uid) else None


def stand_ins(
    workspace: Workspace, observed: Observed, rollout: ActiveRollout | None, *, goal: int, stays: Callable[[Json], bool]
) -> set[Reference]:  # fmt: skip
    """The Deployments of a version that isn't on trial any more, while its servers are needed; else nothing.

    `stays` tells whether a server's node does: one that is drained makes up for none of these.
    With a route the Workspace's own Deployment keeps all of its servers; without room these are in the way.
    """
    left = left_servers(workspace, observed)
    if left is None or usable_route(workspace, observed) is not None:
        return set()
    # That of the version on trial is wanted anyway.
    if rollout is not None and deployed_version(left) == version_id(rollout.status.version):
        return set()
    servers = observed.pods(names.SERVER)
    own = [pod for pod in servers if not is_candidate(pod)]
    problem = worst_problem(own)
    crowded = problem is not None and problem.reason is Reason.UNSCHEDULABLE
    # Unschedulable own servers wait for the very GPUs that these hold.
    if crowded or sum(is_ready(pod) and stays(pod) for pod in own) >= goal:
        return set()
    deployments = names.with_on_demand(names.candidate(workspace.name))
    return {Reference("Deployment", name) for name in deployments}
