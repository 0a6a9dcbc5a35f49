"""Renders a whole Workspace as Kubernetes objects, for `kubectl apply` in clusters without the controller."""

from __future__ import annotations

from typing import Any

from workspace.render import names
from workspace.render.kubernetes import (
    Routing,
    SystemSettings,
    deployment,
    has_activator,
    surrounding_objects,
    wanted_range,
)
from workspace.render.pod import pod_template
from workspace.render.release import Release
from workspace.schema import Workspace

Json = dict[str, Any]


def render_kubernetes(
    workspace: Workspace, release: Release, environment: SystemSettings
) -> list[Json]:
    """All objects, in an order in which they can be applied.

    Without a controller nothing waits for the cache or scales from zero, so at least one replica is requested.
    """
    template = pod_template(workspace, release, revision=release.key.hex[:10])
    routing = Routing(ports=(release.plan.port,))
    replicas = max(1, wanted_range(workspace)[0])
    objects = [
        each
        for each in surrounding_objects(workspace, environment, routing, least=1)
        if not _needs_controller(workspace, each)
    ]
    servers = deployment(
        workspace,
        template,
        replicas=replicas,
        startup_seconds=release.plan.probes.startup_seconds,
        environment=environment,
    )
    return [*objects, servers]


def _needs_controller(workspace: Workspace, each: Json) -> bool:
    """Whether the object is the activator's or its Service: only a controller switches between them and the servers."""
    own = (names.activator(workspace.name), names.server_service(workspace.name))
    return has_activator(workspace) and each["metadata"]["name"] in own
