"""The objects of a Workspace's route: the HTTPRoute with its weights, and what it leads to for each version. Pure."""

from __future__ import annotations

from typing import Any

from workspace.controller.observation.objects import deployed_version
from workspace.controller.observation.observed import Observed, Reference
from workspace.controller.observation.revisions import version_id
from workspace.controller.rollouts.rollout_view import ActiveRollout
from workspace.controller.rollouts.route_view import usable_route
from workspace.render import names
from workspace.render.http_route import http_route, version_services, written_weight
from workspace.render.routing import Routing
from workspace.rollout_spec import Strategy
from workspace.schema import Workspace

Json = dict[str, Any]


def route_objects(
    workspace: Workspace, observed: Observed, rollout: ActiveRollout | None, *, routing: Routing, newest: str | None,
    left: str | None,
) -> list[Json]:  # fmt: skip
    """What the route needs, its backends first; nothing without a route.

    `newest` is the id of the version to run, `left` that of `left_version`.
    """
    route = usable_route(workspace, observed)
    if route is None:
        return []
    found = observed.find("HTTPRoute", workspace.name)
    if workspace.spec.rollout.strategy is Strategy.EXTERNAL:
        # Whoever drives tells the servers of both versions apart by labels of its own, and sets the weights.
        services = version_services(workspace, route, routing, None)
        return [*services, http_route(workspace, route, found, weight=None)]
    new = left or (version_id(rollout.status.version) if rollout else newest)
    weight = rollout.new_weight if rollout else 0
    # Services first: a Gateway refuses a route to one that doesn't exist. `none` is no
    # version's id: it selects nothing.
    return [
        *version_services(workspace, route, routing, new or "none"),
        http_route(workspace, route, found, weight=0 if left else weight),
    ]


def left_version(
    workspace: Workspace, observed: Observed, rollout: ActiveRollout | None
) -> str | None:
    """The id of a version that still has a share of the requests and isn't the new one any more, as after an edit.

    Its servers and its Service stay until the route has let go of them. Where another program sets the weights, that
    might be never, and both Services lead to all servers.
    """
    if workspace.spec.rollout.strategy is Strategy.EXTERNAL:
        return None
    route, found = usable_route(workspace, observed), observed.find("HTTPRoute", workspace.name)
    beside = observed.find("Deployment", names.candidate(workspace.name))
    if route is None or found is None or beside is None:
        return None
    runs = deployed_version(beside)
    if rollout is not None and version_id(rollout.status.version) == runs:
        return None
    return runs if written_weight(workspace, route, found) else None


def kept_objects(workspace: Workspace, left: str | None) -> set[Reference]:
    """Objects of the route that stay though they aren't wanted now. `left`: the id of `left_version`."""
    kept = set()
    if workspace.spec.route is not None:
        # Others' rules are in it, so it outlives a kind of backend that the cluster lacks for a while.
        kept.add(Reference("HTTPRoute", workspace.name))
    if left:
        deployments = names.with_on_demand(names.candidate(workspace.name))
        kept |= {Reference("Deployment", name) for name in deployments}
    return kept
