"""The Deployments and LeaderWorkerSets of servers, from what is decided about their numbers. Pure."""

from __future__ import annotations

from typing import Any

from workspace.controller.observation.objects import asked_replicas
from workspace.controller.observation.revisions import Revision
from workspace.controller.servers.server_counts import ServerCounts
from workspace.controller.servers.shares import Shares
from workspace.controller.servers.workloads import workload
from workspace.render.deployments import candidate_deployment, on_demand_deployment
from workspace.render.routing import SystemSettings
from workspace.schema import Workspace

Json = dict[str, Any]


def own_servers(
    workspace: Workspace, active: Revision, counts: ServerCounts, environment: SystemSettings, current: Json | None
) -> list[Json]:  # fmt: skip
    """What keeps the Workspace's own, and those of them which never run on spot capacity, if it has any."""
    asked, surge = counts.asked, counts.surge
    made = workload(
        workspace, active, replicas=asked.rest, environment=environment, current=current, surge=surge.rest
    )  # fmt: skip
    if not asked.on_demand:
        return [made]
    return [on_demand_deployment(made, replicas=asked.on_demand, surge=surge.on_demand), made]


def candidate_deployments(
    workspace: Workspace, candidate: Revision, counts: ServerCounts, environment: SystemSettings
) -> list[Json]:
    """The same of a new version beside it, with a floor of its own: it may get all requests."""
    asked, surge = counts.asked, counts.surge
    if not asked.total:
        return []
    made = candidate_deployment(
        workspace, candidate.template, replicas=asked.rest, startup_seconds=candidate.startup_seconds,
        environment=environment, surge=surge.rest,
    )  # fmt: skip
    if not asked.on_demand:
        return [made]
    return [on_demand_deployment(made, replicas=asked.on_demand, surge=surge.on_demand), made]


def asked_shares(own: Json | None, beside: Json | None) -> Shares:
    """What the own Deployments, or the LeaderWorkerSet, were asked for."""
    return Shares(*(asked_replicas(each) if each else 0 for each in (own, beside)))


def deployed_shares(own: Json | None, beside: Json | None) -> Shares:
    """Their numbers of replicas, a surge included."""
    return Shares(*(int(each["spec"].get("replicas", 1)) if each else 0 for each in (own, beside)))
