"""NetworkPolicies of a Workspace: who reaches its servers, its activator and its builds, and what those reach."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from workspace.render import names
from workspace.render.routing import Routing, SystemSettings, meta, selected
from workspace.runtime_spec import DEFAULT_PORT
from workspace.schema import Workspace

Json = dict[str, Any]

# Not the spec's: an edit of the servers' port would restart the activator, and lose what it holds.
ACTIVATOR_PORT: Final = DEFAULT_PORT


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
            "podSelector": {"matchLabels": selected(workspace, names.SERVER, routing)},
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
    servers = {"podSelector": {"matchLabels": selected(workspace, names.SERVER, routing)}}
    dns = [{"port": 53, "protocol": protocol} for protocol in ("UDP", "TCP")]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": meta(workspace, names.activator(workspace.name)),
        "spec": {
            "podSelector": {"matchLabels": selected(workspace, names.ACTIVATOR, routing)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [_ingress(workspace, environment, (ACTIVATOR_PORT,))],
            "egress": [
                {"to": [servers]},
                {"ports": dns},
                # Without the rule for DNS, which is there already.
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
            # Ingress without a rule lets nobody in.
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


def _ingress(workspace: Workspace, environment: SystemSettings, ports: Iterable[int]) -> Json:
    allowed = workspace.spec.tenancy.network_policy
    # A podSelector alone means pods of the policy's own namespace.
    sources: list[Json] = [{"podSelector": {}}, _system_pods(environment, "controller")]
    if allowed is not None and allowed.allow_from_namespaces:
        sources.append({"namespaceSelector": {"matchLabels": dict(allowed.allow_from_namespaces)}})
    if workspace.spec.route is not None and environment.gateways_from:
        sources.append({"namespaceSelector": {"matchLabels": dict(environment.gateways_from)}})
    if environment.metrics_from:
        sources.append({"namespaceSelector": {"matchLabels": dict(environment.metrics_from)}})
    open_ports = [{"port": port, "protocol": "TCP"} for port in ports]
    return {"from": sources, "ports": open_ports}


def _system_pods(environment: SystemSettings, component: str) -> Json:
    # Both in one element, or they were alternatives: pods of any namespace could then carry these labels.
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
