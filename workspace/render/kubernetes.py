"""A Workspace's Kubernetes objects around its servers: Services, policies, quotas, the activator.

Objects contain only fields that Weightyard decides; defaults are left to the API server.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Final

from workspace.node_terms import is_not_in
from workspace.render import names
from workspace.render.autoscalers import autoscaler
from workspace.render.build_settings import BuildSettings
from workspace.render.groups import group_policy, members
from workspace.render.pod import container_security, named_values, pod_security
from workspace.render.quantities import canonical_all
from workspace.render.trace_settings import TraceSettings
from workspace.scale_spec import Autoscaler
from workspace.schema import DEFAULT_PORT, Workspace

Json = dict[str, Any]

DEFAULT_IMAGE: Final = "ghcr.io/weightyard/weightyard-controller:0.1.0"
BUILDER_IMAGE: Final = "ghcr.io/weightyard/weightyard-builder:0.1.0"
AGENT_IMAGE: Final = "ghcr.io/weightyard/weightyard-agent:0.1.0"
CLIENT_PORT: Final = 80
# Not the spec's: an edit of the servers' port would restart the activator, and lose what it holds.
_ACTIVATOR_PORT: Final = DEFAULT_PORT


@dataclass(frozen=True, slots=True)
class SystemSettings:
    """Facts of the cluster: the namespace of Weightyard's system, and the images of its programs.

    `image` is the controller's; activators use it too. Pods of namespaces with the labels `metrics_from` may scrape the
    servers' metrics; without any only those of the Workspace's own. Pods of namespaces with the labels `gateways_from`
    are Gateways' proxies, which reach the servers of Workspaces with a route.
    """

    system_namespace: str = "weightyard"
    image: str = DEFAULT_IMAGE
    agent_image: str = AGENT_IMAGE
    builder_image: str = BUILDER_IMAGE
    quiet_seconds: int = 600  # added to a server's own startup limit in a rollout's deadline
    quotas: bool = True  # whether Workspaces may set the quota and the limits of their namespace
    metrics_from: Mapping[str, str] = field(default_factory=dict)
    gateways_from: Mapping[str, str] = field(default_factory=dict)
    builds: BuildSettings = field(default_factory=BuildSettings)
    tracing: TraceSettings = field(default_factory=TraceSettings)


class Part(Enum):
    """Servers that evictions count apart, each with its label: one is of the first part whose label it has.

    CANDIDATE: of a new version, beside those of the version that serves. ON_DEMAND: never on spot capacity.
    """

    CANDIDATE = (names.TRACK, names.CANDIDATE)
    ON_DEMAND = (names.CAPACITY, names.ON_DEMAND)
    REST = None


# The parts that there are, each with the servers that evictions must leave ready; None lets one at a time go.
Budgets = Mapping[Part, int | None]


@dataclass(frozen=True, slots=True)
class Routing:
    """What decides where requests go: the pods behind the Workspace's Service, and the ports of its servers.

    `ports` are those of all versions that run, which differ from the spec's while one replaces the other. `uid` binds
    selectors to one Workspace; None where no controller has created it. `version` is the id of the version that alone
    gets requests. `nodes` are those of each server of the version to run; `workers` tells that some server runs on
    several.
    """

    role: str = names.SERVER
    ports: tuple[int, ...] = (DEFAULT_PORT,)
    uid: str | None = None
    budgets: Budgets = field(default_factory=lambda: {Part.REST: None})
    version: str | None = None
    nodes: int = 1
    workers: bool = False


DIRECT: Final = Routing()


def meta(workspace: Workspace, name: str, role: str | None = None, uid: str | None = None) -> Json:
    """Metadata of an object in the Workspace's namespace."""
    where = {"namespace": workspace.metadata.namespace} if workspace.metadata.namespace else {}
    return {"name": name, **where, "labels": names.labels(workspace.name, role, uid)}


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
        return [_budget(workspace, Part.REST, routing.budgets.get(Part.REST), selector)]
    labels = _selected(workspace, names.SERVER, routing)
    found: list[Json] = []
    earlier: list[tuple[str, str]] = []
    # In this order a pod has two budgets for a moment, which refuse its eviction, and never none.
    for part in Part:
        if part not in routing.budgets:
            continue
        own = dict([part.value]) if part.value else {}
        selector = {"matchLabels": {**labels, **own}}
        if earlier:
            selector["matchExpressions"] = [is_not_in(key, [value]) for key, value in earlier]
        found.append(_budget(workspace, part, routing.budgets[part], selector))
        earlier += own.items()
    return found


def _budget(workspace: Workspace, part: Part, least: int | None, selector: Json) -> Json:
    limit = {"maxUnavailable": 1} if least is None else {"minAvailable": least}
    name = {
        Part.CANDIDATE: names.candidate(workspace.name),
        Part.ON_DEMAND: names.on_demand(workspace.name),
        Part.REST: workspace.name,
    }[part]
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": meta(workspace, name),
        # A server that isn't ready serves nobody: without this, one that never gets ready would keep its node.
        "spec": {**limit, "selector": selector, "unhealthyPodEvictionPolicy": "AlwaysAllow"},
    }


def network_policy(workspace: Workspace, environment: SystemSettings, routing: Routing) -> Json:
    """Ingress from the own namespace, allowed namespaces and the controller's scrapes; egress to the agent only.

    A traced server reaches the collector too, where the operator says in which namespace that is.
    """
    given, tracing = workspace.spec.runtime.tracing, environment.tracing
    endpoints = [each for each in (given.endpoint if given else None, tracing.servers) if each]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": meta(workspace, workspace.name),
        "spec": {
            "podSelector": {"matchLabels": _selected(workspace, names.SERVER, routing)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [_ingress(workspace, environment, routing.ports)],
            "egress": [
                {"to": [_system_pods(environment, "agent")]},
                *tracing.egress(endpoints),
            ],
        },
    }


def activator_policy(workspace: Workspace, environment: SystemSettings, routing: Routing) -> Json:
    """The same ingress for the activator, which would let everyone in otherwise; egress to the servers and to DNS."""
    servers = {"podSelector": {"matchLabels": _selected(workspace, names.SERVER, routing)}}
    dns = [{"port": 53, "protocol": protocol} for protocol in ("UDP", "TCP")]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": meta(workspace, names.activator(workspace.name)),
        "spec": {
            "podSelector": {"matchLabels": _selected(workspace, names.ACTIVATOR, routing)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [_ingress(workspace, environment, (_ACTIVATOR_PORT,))],
            "egress": [
                {"to": [servers]},
                {"ports": dns},
                *environment.tracing.egress(environment.tracing.endpoints)[:1],
            ],
        },
    }


def build_policy(workspace: Workspace, environment: SystemSettings, uid: str | None) -> Json:
    """Builds reach registries and sources wherever they are, but not what is blocked; nobody reaches builds."""
    outside = [
        {"ipBlock": {"cidr": everything, **({"except": blocked} if blocked else {})}}
        for everything, blocked in _by_family(environment.builds.blocked)
    ]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": meta(workspace, names.build_policy(workspace.name)),
        "spec": {
            "podSelector": {"matchLabels": names.selector(workspace.name, names.BUILD, uid)},
            "policyTypes": ["Ingress", "Egress"],
            # Pods of the cluster, such as a registry's, aren't addresses for some network plugins.
            "egress": [{"to": [*outside, {"namespaceSelector": {}}]}],
        },
    }


def _by_family(networks: Iterable[str]) -> list[tuple[str, list[str]]]:
    """All addresses of each family, and the networks that are of it."""
    listed = list(networks)
    return [
        ("0.0.0.0/0", [each for each in listed if ":" not in each]),
        ("::/0", [each for each in listed if ":" in each]),
    ]


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
            "--listen", f"0.0.0.0:{_ACTIVATOR_PORT}",
            "--upstream", f"http://{names.server_service(workspace.name)}:{CLIENT_PORT}",
        ],
        **({"env": named_values(traced)} if (traced := environment.tracing.env) else {}),
        "ports": [{"name": names.PORT_NAME, "containerPort": _ACTIVATOR_PORT, "protocol": "TCP"}],
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
            "selector": {"matchLabels": _selected(workspace, names.ACTIVATOR, routing)},
            "template": {
                "metadata": {
                    "labels": names.labels(workspace.name, names.ACTIVATOR, routing.uid),
                    "annotations": names.scraped("/activator/metrics", _ACTIVATOR_PORT),
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


def _selected(workspace: Workspace, role: str, routing: Routing) -> dict[str, str]:
    return names.selector(workspace.name, role, routing.uid)


def _ingress(workspace: Workspace, environment: SystemSettings, ports: Iterable[int]) -> Json:
    allowed = workspace.spec.tenancy.network_policy
    sources: list[Json] = [{"podSelector": {}}, _system_pods(environment, "controller")]
    if allowed is not None and allowed.allow_from_namespaces:
        sources.append({"namespaceSelector": {"matchLabels": dict(allowed.allow_from_namespaces)}})
    if workspace.spec.route is not None and environment.gateways_from:
        sources.append({"namespaceSelector": {"matchLabels": dict(environment.gateways_from)}})
    if environment.metrics_from:
        sources.append({"namespaceSelector": {"matchLabels": dict(environment.metrics_from)}})
    open_ports = [{"port": port, "protocol": "TCP"} for port in ports]
    return {"from": sources, "ports": open_ports}


def service_of(workspace: Workspace, name: str, routing: Routing) -> Json:
    """A Service of some of the Workspace's pods."""
    entry = {"name": names.PORT_NAME, "port": CLIENT_PORT, "protocol": "TCP"}
    selector = _selected(workspace, routing.role, routing)
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
            "ports": [{**entry, "targetPort": names.PORT_NAME}],
        },
    }


def _system_pods(environment: SystemSettings, component: str) -> Json:
    return {
        "namespaceSelector": {
            "matchLabels": {"kubernetes.io/metadata.name": environment.system_namespace}
        },
        "podSelector": {
            "matchLabels": {
                "app.kubernetes.io/part-of": "weightyard",
                "app.kubernetes.io/component": component,
            }
        },
    }
