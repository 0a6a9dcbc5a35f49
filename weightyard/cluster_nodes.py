"""Reads what a cluster shows of a Workspace's nodes, through kubectl: whatever can't be read counts as not there."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import quote

from modelimage.errors import WeightyardError
from weightyard.kubectl import Kubectl
from weightyard.node_answers import NodeFacts, provisioner_of, waiting
from workspace.controller.observation.node_news import REASONS
from workspace.node_pools import GROUP as KARPENTER
from workspace.provisioning_spec import Provisioner
from workspace.render import names

Json = dict[str, Any]

KUEUE: Final = "kueue.x-k8s.io"
REQUESTS: Final = "autoscaling.x-k8s.io"


def node_facts(cluster: Kubectl, document: Json) -> NodeFacts:
    """What is known of the nodes that a Workspace's servers wait for. Raises nothing of the cluster's."""
    space, name = document["metadata"]["namespace"], document["metadata"]["name"]
    core = f"/api/v1/namespaces/{quote(space)}"
    # A group waits with any of its pods.
    selector = f"{names.WORKSPACE}={name},{names.ROLE} in ({names.SERVER},{names.WORKER})"
    pods = _items(cluster, f"{core}/pods?labelSelector={quote(selector)}")
    # Most calls end here, after one question: where each pod has its node nothing needs to be explained.
    if not waiting(pods):
        return NodeFacts(pods=pods)
    events = [
        each
        for reason in REASONS
        for each in _items(
            cluster,
            f"{core}/events?fieldSelector={quote(f'involvedObject.kind=Pod,reason={reason}')}",
        )
    ]
    facts = NodeFacts(pods=pods, events=events)
    match provisioner_of(document):
        case Provisioner.KARPENTER:
            pools, claims = (
                all_of(cluster, KARPENTER, kind) for kind in ("nodepools", "nodeclaims")
            )
            return NodeFacts(pods, events, pools, claims)
        case Provisioner.KUEUE:
            workloads = all_of(cluster, KUEUE, "workloads", space)
            # By its version: the group has CapacityBuffers too, and may
            # prefer a version that only those have.
            requests = all_of(cluster, REQUESTS, "provisioningrequests", space, version="v1")
            return NodeFacts(pods, events, workloads=workloads, requests=requests)
    return facts


def all_of(
    cluster: Kubectl, group: str, plural: str, namespace: str | None = None, *, version: str = ""
) -> list[Json]:
    """All objects of a kind, in the group's preferred version unless given; none where they can't be read."""
    if not version:
        version = preferred_version(cluster, group)
        if not version:
            return []
    where = f"/namespaces/{quote(namespace)}" if namespace else ""
    return _items(cluster, f"/apis/{group}/{version}{where}/{plural}")


def preferred_version(cluster: Kubectl, group: str) -> str:
    """The version of a group that its API server prefers; empty where it doesn't have the group."""
    try:
        found = cluster.get(f"/apis/{group}")
    except WeightyardError:
        return ""
    return str((found.get("preferredVersion") or {}).get("version") or "")


def _items(cluster: Kubectl, path: str) -> list[Json]:
    # To explain is all that this is for: what can't be read says nothing.
    try:
        return list(cluster.get(path).get("items") or ())
    except WeightyardError:
        return []
