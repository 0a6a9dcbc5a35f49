"""Where a Workspace's Service leads: to servers or to the activator, and to which ports. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from workspace.controller.observation.cluster_state import server_count
from workspace.controller.observation.objects import container_ports, is_ready
from workspace.controller.observation.observed import Observed
from workspace.controller.observation.revisions import Revision
from workspace.render import names
from workspace.render.kubernetes import has_activator
from workspace.render.release import server_port
from workspace.schema import Workspace


def service_role(workspace: Workspace, observed: Observed) -> str | None:
    """The pods behind the Service now; None where there is none."""
    service = observed.find("Service", workspace.name)
    return service["spec"].get("selector", {}).get(names.ROLE) if service else None


def wanted_role(workspace: Workspace, observed: Observed, *, goal: int) -> str:
    """The pods behind the Service: the activator while no server is ready, or the last is about to stop."""
    if not has_activator(workspace):
        return names.SERVER
    holds_requests = any(map(is_ready, observed.pods(names.ACTIVATOR)))
    _, ready_count = server_count(observed)
    # Before the last server stops the activator has to be ready, or the Service
    # would have no endpoint in between.
    if ready_count == 0 or (goal == 0 and holds_requests):
        return names.ACTIVATOR
    return names.SERVER


def server_ports(
    workspace: Workspace, observed: Observed, versions: Iterable[Revision | None]
) -> tuple[int, ...]:
    """An edited port opens beside that of the version that still serves, not in its place."""
    specs = [pod["spec"] for pod in observed.pods(names.SERVER)]
    specs += [each.template["spec"] for each in versions if each]
    ports = {port for spec in specs for port in container_ports(spec)}
    return tuple(sorted(ports)) or (server_port(workspace),)
