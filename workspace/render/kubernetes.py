"""A Workspace's Kubernetes objects around its servers: Services, policies, quotas, the activator.

Objects contain only fields that Weightyard decides; defaults are left to the API server.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from workspace.node_terms import is_not_in
from workspace.render import names
from workspace.render.autoscalers import autoscaler
from workspace.render.containers import container_security, named_values
from workspace.render.groups import group_policy, members
from workspace.render.network_policies import (
    ACTIVATOR_PORT,
    activator_policy,
    build_policy,
    network_policy,
)
from workspace.render.pod import pod_security
from workspace.render.quantities import canonical_all
from workspace.render.routing import DIRECT, Routing, ServerPart, SystemSettings, meta, selected
from workspace.scale_spec import Autoscaler
from workspace.schema import Workspace

Json = dict[str, Any]

CLIENT_PORT: Final = 80


def wanted_range(workspace: Workspace) -> tuple[int, int]:
    """The minimum and maximum of replicas that the spec allows."""
    spec = workspace.spec
    if spec.scale is not None:
        return spec.scale.min, spec.scale.max
    count = 1 if spec.replicas is None else spec.replicas
    return count, count


def first_replicas(workspace: Workspace) -> int:
    """The replicas to begin with where no controller counts them: those asked for, or one for an autoscaler to read."""
    least, _ = wanted_range(workspace)
    return least if workspace.spec.scale is None else max(1, least)


def has_activator(workspace: Workspace) -> bool:
    """Whether requests may arrive while no server runs: a HorizontalPodAutoscaler never scales to zero."""
    scale = workspace.spec.scale
    return scale is not None and scale.min == 0 and scale.by is not Autoscaler.HPA


def service(workspace: Workspace, routing: Routing = DIRECT) -> Json:
    """The Workspace's Service: to the servers, or to the activator while no server is ready."""
    return service_of(workspace, workspace.name, routing)


def server_service(workspace: Workspace, routing: Routing = DIRECT) -> Json:
    """The Service of the servers only; the activator forwards to it."""
    name = names.server_service(workspace.name)
    return service_of(workspace, name, replace(routing, role=names.SERVER))


def service_account(workspace: Workspace) -> Json:
    """A ServiceAccount without a token: servers make no API requests."""
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": meta(workspace, workspace.name),
        "automountServiceAccountToken": False,
    }


def disruption_budgets(workspace: Workspace, routing: Routing) -> list[Json]:
    """Let node drains evict one server at a time; where they can be replaced, after their replacements are ready.

    A budget counts pods of one part: with one for all, a new server on spot would let one of the floor go, and a new
    version that gets no requests yet would let all go that answer them.
    """
    if routing.nodes > 1:
        selector = members(workspace, routing.uid)
        return [_budget(workspace, ServerPart.REST, routing.budgets.get(ServerPart.REST), selector)]
    labels = selected(workspace, names.SERVER, routing)
    found: list[Json] = []
    earlier: list[tuple[str, str]] = []
    # In this order a pod has two budgets for a moment, which refuse its eviction, and never none.
    for part in ServerPart:
        if part not in routing.budgets:
            continue
        own = dict([part.value]) if part.value else {}
        selector = {"matchLabels": {**labels, **own}}
        if earlier:
            selector["matchExpressions"] = [is_not_in(key, [value]) for key, value in earlier]
        found.append(_budget(workspace, part, routing.budgets[part], selector))
        earlier += own.items()
    return found


def _budget(workspace: Workspace, part: ServerPart, least: int | None, selector: Json) -> Json:
    limit = {"maxUnavailable": 1} if least is None else {"minAvailable": least}
    name = {
        ServerPart.CANDIDATE: names.candidate(workspace.name),
        ServerPart.ON_DEMAND: names.on_demand(workspace.name),
        ServerPart.REST: workspace.name,
    }[part]
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": meta(workspace, name),
        # A server that isn't ready serves nobody: without this, one that never gets ready would keep its node.
        "spec": {**limit, "selector": selector, "unhealthyPodEvictionPolicy": "AlwaysAllow"},
    }


def quota(workspace: Workspace) -> list[Json]:
    """ResourceQuota and LimitRange, if the spec has them."""
    tenancy, objects = workspace.spec.tenancy, []
    if tenancy.quota:
        objects.append(
            {
                "apiVersion": "v1",
                "kind": "ResourceQuota",
                "metadata": meta(workspace, workspace.name),
                # In the server's form, or every comparison would find a difference.
                "spec": {"hard": canonical_all(tenancy.quota)},
            }
        )
    if tenancy.limits:
        defaults = canonical_all(tenancy.limits)
        item = {"type": "Container", "default": defaults, "defaultRequest": dict(defaults)}
        objects.append(
            {
                "apiVersion": "v1",
                "kind": "LimitRange",
                "metadata": meta(workspace, workspace.name),
                "spec": {"limits": [item]},
            }
        )
    return objects


def activator_deployment(
    workspace: Workspace, environment: SystemSettings, routing: Routing = DIRECT
) -> Json:
    """The proxy that holds requests while a server starts from zero."""
    name, limits = names.activator(workspace.name), {"cpu": "100m", "memory": "128Mi"}
    probe = {"httpGet": {"path": "/activator/health", "port": names.PORT_NAME}}
    container: Json = {
        "name": names.ACTIVATOR,
        "image": environment.image,
        "command": ["weightyard", "activator"],
        "args": [
            "--listen", f"0.0.0.0:{ACTIVATOR_PORT}",
            "--upstream", f"http://{names.server_service(workspace.name)}:{CLIENT_PORT}",
        ],
        **({"env": named_values(traced)} if (traced := environment.tracing.env) else {}),
        "ports": [{"name": names.PORT_NAME, "containerPort": ACTIVATOR_PORT, "protocol": "TCP"}],
        # A limit on CPU would hold up every request that passes here as soon as many come together.
        "resources": {"requests": limits, "limits": {"memory": limits["memory"]}},
        # Every second: a client's first request waits for it.
        "startupProbe": {**probe, "periodSeconds": 1, "failureThreshold": 120},
        "readinessProbe": {**probe, "periodSeconds": 2},
        "livenessProbe": {**probe, "periodSeconds": 10, "failureThreshold": 6},
        "securityContext": container_security(),
    }  # fmt: skip
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": meta(workspace, name),
        "spec": {
            # One replica: its queue is in memory, and the autoscaler reads the queue from one page.
            "replicas": 1,
            "selector": {"matchLabels": selected(workspace, names.ACTIVATOR, routing)},
            "template": {
                "metadata": {
                    "labels": names.labels(workspace.name, names.ACTIVATOR, routing.uid),
                    "annotations": names.scraped("/activator/metrics", ACTIVATOR_PORT),
                },
                "spec": {
                    "serviceAccountName": workspace.name,
                    "automountServiceAccountToken": False,
                    "enableServiceLinks": False,
                    "securityContext": pod_security(),
                    "containers": [container],
                },
            },
        },
    }


def surrounding_objects(
    workspace: Workspace, environment: SystemSettings, routing: Routing = DIRECT, *, least: int = 0
) -> list[Json]:
    """All objects except the servers' Deployment; policies first, so that nothing runs before them.

    `least` is the number of replicas below which no autoscaler may go, whatever the spec says.
    """
    activator = has_activator(workspace)
    objects = [
        network_policy(workspace, environment, routing),
        *([_group_policy(workspace, routing)] if routing.workers else ()),
        *([activator_policy(workspace, environment, routing)] if activator else ()),
        *(
            [build_policy(workspace, environment, routing.uid)]
            if workspace.spec.model.build
            else ()
        ),
        service_account(workspace),
        service(workspace, routing),
        *disruption_budgets(workspace, routing),
        *(quota(workspace) if environment.quotas else ()),
        *autoscaler(
            workspace, meta(workspace, workspace.name), least=least, grouped=routing.nodes > 1
        ),
    ]
    if activator:
        objects.append(server_service(workspace, routing))
        objects.append(activator_deployment(workspace, environment, routing))
    return objects


def _group_policy(workspace: Workspace, routing: Routing) -> Json:
    return group_policy(workspace, meta(workspace, names.group(workspace.name)), routing.uid)


def service_of(workspace: Workspace, name: str, routing: Routing) -> Json:
    """A Service of some of the Workspace's pods."""
    entry = {"name": names.PORT_NAME, "port": CLIENT_PORT, "protocol": "TCP"}
    selector = selected(workspace, routing.role, routing)
    # The activator's pods have no version: with its label, the Service would select none of them.
    if routing.version is not None and routing.role == names.SERVER:
        selector[names.REVISION] = routing.version
    metadata = meta(workspace, name)
    if workspace.spec.route is not None:
        metadata["labels"] |= {names.ROUTED: "true"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            "type": "ClusterIP",
            "selector": selector,
            # By name: while an edit of the port rolls out, each pod has the port of its own version.
            "ports": [{**entry, "targetPort": names.PORT_NAME}],
        },
    }
