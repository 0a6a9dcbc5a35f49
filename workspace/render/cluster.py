"""Renders a whole Workspace as Kubernetes objects, for `kubectl apply` in clusters without the controller."""

from __future__ import annotations

from typing import Any, Final

from workspace.hardware import Hardware
from workspace.node_demands import on_demand_share
from workspace.render import groups, names
from workspace.render.deployments import deployment, group_set, on_demand_deployment
from workspace.render.kubernetes import first_replicas, surrounding_objects
from workspace.render.pod import affinity, pod_template
from workspace.render.release import Release
from workspace.render.routing import Routing, ServerPart, SystemSettings
from workspace.render.standalone import gpu_node_terms, limited, memory_limit
from workspace.schema import Workspace

Json = dict[str, Any]

NO_HARDWARE: Final = Hardware()


def render_kubernetes(
    workspace: Workspace,
    release: Release,
    environment: SystemSettings,
    hardware: Hardware = NO_HARDWARE,
    *,
    scraped_from: str | None = None,
) -> list[Json]:
    """All objects, in an order in which they can be applied.

    Without a controller nothing waits for the cache or scales from zero, so an autoscaler begins with one replica.
    `hardware` is what the release was planned for. `scraped_from` is the namespace of the Prometheus that may read
    metrics; without one, no annotation asks it to.
    """
    nodes = release.plan.nodes
    template = _standalone(
        # Without a ControllerRevision nothing names the version, so the model's key stands for it.
        pod_template(workspace, release, revision=release.key.hex[:10]),
        workspace, release, hardware, scraped=scraped_from is not None,
    )  # fmt: skip
    replicas = first_replicas(workspace)
    floor = on_demand_share(workspace.spec.resources.provisioning, replicas)
    parts = [ServerPart.ON_DEMAND, ServerPart.REST] if floor else [ServerPart.REST]
    routing = Routing(
        ports=(release.plan.port,),
        nodes=nodes,
        workers=nodes > 1,
        budgets=dict.fromkeys(parts),
    )
    objects = [
        each
        for each in surrounding_objects(workspace, environment, routing, least=1)
        if not _needs_controller(workspace, each)
    ]
    if scraped_from is not None:
        objects = [_open_metrics(each, scraped_from, release.plan.port) for each in objects]
    if nodes > 1:
        leader = groups.leader_template(workspace, template)
        worker = groups.worker_template(workspace, release, template)
        return [*objects, group_set(workspace, leader, worker, size=nodes, replicas=replicas)]
    servers = deployment(
        workspace,
        template,
        replicas=replicas - floor,
        startup_seconds=release.plan.probes.startup_seconds,
        environment=environment,
    )
    beside = [on_demand_deployment(servers, replicas=floor)] if floor else []
    return [*objects, *beside, servers]


def _needs_controller(workspace: Workspace, each: Json) -> bool:
    """Whether the object is a build's, the activator's or its Service: only a controller builds and switches to it."""
    own = (
        names.activator(workspace.name),
        names.server_service(workspace.name),
        names.build_policy(workspace.name),
    )
    return each["metadata"]["name"] in own


def _standalone(
    template: Json, workspace: Workspace, release: Release, hardware: Hardware, *, scraped: bool
) -> Json:
    """The pod template with what only a controller could add later."""
    annotations, spec = template["metadata"]["annotations"], template["spec"]
    shown = {
        name: value
        for name, value in annotations.items()
        if scraped or not name.startswith("prometheus.io/")
    }
    server, *sidecars = spec["containers"]
    limit = memory_limit(workspace, release)
    server = {**server, "resources": limited(server["resources"], limit)}
    found = affinity(workspace.spec, release, gpu_node_terms(workspace, release, hardware))
    return {
        "metadata": {**template["metadata"], "annotations": shown},
        "spec": {
            **spec,
            **({"affinity": found} if found else {}),
            "containers": [server, *sidecars],
        },
    }


def _open_metrics(each: Json, namespace: str, port: int) -> Json:
    """The servers' NetworkPolicy, with their port open to a namespace; any other object as it is."""
    if each["kind"] != "NetworkPolicy":
        return each
    scraper = {
        "from": [
            {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}}
        ],
        "ports": [{"port": port, "protocol": "TCP"}],
    }
    return {**each, "spec": {**each["spec"], "ingress": [*each["spec"]["ingress"], scraper]}}
