"""What an API server fills in where a client says nothing (k8s.io/kubernetes: pkg/apis/*/v1/defaults.go)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]

_PROBE = {"scheme": "HTTP"}
_ADMITTED = [
    {
        "key": f"node.kubernetes.io/{each}",
        "operator": "Exists",
        "effect": "NoExecute",
        "tolerationSeconds": 300,
    }
    for each in ("not-ready", "unreachable")
]


def fill_defaults(document: Json) -> Json:
    """The document with its defaults."""
    document = copy.deepcopy(document)
    fill = {
        "Deployment": _deployment, "Service": _service, "Pod": _pod, "NetworkPolicy": _policy,
        "HorizontalPodAutoscaler": _autoscaler, "HTTPRoute": _route, "LeaderWorkerSet": _groups,
    }.get(document["kind"])  # fmt: skip
    if fill is not None:
        fill(document)
    return document


def _default(target: Json, **values: Any) -> None:
    for name, value in values.items():
        target.setdefault(name, value)


def _deployment(document: Json) -> None:
    spec = document["spec"]
    _default(spec, replicas=1, revisionHistoryLimit=10, progressDeadlineSeconds=600, strategy={})
    _default(spec["strategy"], type="RollingUpdate")
    if spec["strategy"]["type"] == "RollingUpdate":
        _default(spec["strategy"], rollingUpdate={})
        _default(spec["strategy"]["rollingUpdate"], maxSurge="25%", maxUnavailable="25%")
    spec["template"]["metadata"].setdefault("creationTimestamp", None)
    _pod_spec(spec["template"]["spec"])


def _pod(document: Json) -> None:
    spec = document["spec"]
    _pod_spec(spec)
    _default(spec, priority=0, preemptionPolicy="PreemptLowerPriority")
    tolerations = spec.setdefault("tolerations", [])
    tolerations += [each for each in _ADMITTED if each not in tolerations]
    document.setdefault("status", {}).setdefault("phase", "Pending")


def _pod_spec(spec: Json) -> None:
    _default(spec, restartPolicy="Always", dnsPolicy="ClusterFirst", schedulerName="default-scheduler",
             securityContext={}, terminationGracePeriodSeconds=30)  # fmt: skip
    if "serviceAccountName" in spec:
        spec["serviceAccount"] = spec["serviceAccountName"]
    for container in spec["containers"]:
        image = container.get("image", "")
        latest = image.endswith(":latest") or ":" not in image.rpartition("/")[2]
        _default(container, terminationMessagePath="/dev/termination-log", terminationMessagePolicy="File",
                 imagePullPolicy="Always" if latest else "IfNotPresent", resources={})  # fmt: skip
        for probe in _probes(container):
            _default(
                probe, timeoutSeconds=1, periodSeconds=10, successThreshold=1, failureThreshold=3
            )
            if "httpGet" in probe:
                _default(probe["httpGet"], **_PROBE)
        for port in container.get("ports", ()):
            _default(port, protocol="TCP")
        for name, value in container["resources"].get("limits", {}).items():
            container["resources"].setdefault("requests", {}).setdefault(name, value)


def _probes(container: Json) -> Iterator[Json]:
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        if name in container:
            yield container[name]


def _service(document: Json) -> None:
    spec = document["spec"]
    _default(spec, type="ClusterIP", clusterIP="10.0.0.7", clusterIPs=["10.0.0.7"], sessionAffinity="None",
             ipFamilies=["IPv4"], ipFamilyPolicy="SingleStack", internalTrafficPolicy="Cluster")  # fmt: skip
    for port in spec["ports"]:
        _default(port, protocol="TCP", targetPort=port["port"])


def _policy(document: Json) -> None:
    for rule in document["spec"].get("ingress", ()):
        for port in rule.get("ports", ()):
            _default(port, protocol="TCP")


def _route(document: Json) -> None:
    for parent in document["spec"].get("parentRefs", ()):
        _default(parent, group="gateway.networking.k8s.io", kind="Gateway")
    for rule in document["spec"].get("rules", ()):
        _default(rule, matches=[{"path": {"type": "PathPrefix", "value": "/"}}])
        for backend in rule.get("backendRefs", ()):
            _default(backend, group="", kind="Service", weight=1)


def _groups(document: Json) -> None:
    """By its definition, and by LeaderWorkerSet's webhook."""
    spec = document["spec"]
    _default(spec, replicas=1, startupPolicy="LeaderCreated", rolloutStrategy={})
    _default(spec, networkConfig={"subdomainPolicy": "Shared"})
    _default(spec["leaderWorkerTemplate"], size=1, restartPolicy="RecreateGroupOnPodRestart")
    _default(spec["rolloutStrategy"], type="RollingUpdate", rollingUpdateConfiguration={})
    rolling = spec["rolloutStrategy"]["rollingUpdateConfiguration"]
    _default(rolling, partition=0, maxUnavailable=1, maxSurge=0)


def _autoscaler(document: Json) -> None:
    for policy in document["spec"].get("behavior", {}).values():
        _default(policy, selectPolicy="Max")
