"""Facts of Kubernetes objects as the API server returns them: plain documents in, plain values out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final

from modelimage.bounds import parse_count
from workspace.field_types import MOST_REPLICAS
from workspace.render.names import (
    CANDIDATE,
    GROUP_INDEX,
    PORT_NAME,
    REVISION,
    ROLE,
    SURGE,
    TRACK,
    UID,
    WORKSPACE,
)

Json = dict[str, Any]

# They hold others' parts in lists that no server merges.
SHARED_KINDS: Final = frozenset({"HTTPRoute"})
# Reasons of waiting containers before the sandbox is there.
_CREATING = (None, "ContainerCreating", "PodInitializing")


def has_labels(document: Json, wanted: Mapping[str, str]) -> bool:
    labels = document["metadata"].get("labels") or {}
    return all(labels.get(name) == value for name, value in wanted.items())


def is_candidate(pod: Json) -> bool:
    """Whether a server is of a new version that runs beside the one that serves."""
    return has_labels(pod, {TRACK: CANDIDATE})


def is_owned(document: Json, uid: str) -> bool:
    """Whether the Workspace with this uid controls the object."""
    owners: Iterable[Json] = document["metadata"].get("ownerReferences") or ()
    # Several owners keep an object from being collected; the one marked `controller` manages it.
    return any(each.get("uid") == uid and each.get("controller") for each in owners)


def condition(document: Json, kind: str) -> Json:
    """A condition of an object; empty when it has none of that type."""
    return condition_in(document.get("status") or {}, kind)


def condition_in(status: Json, kind: str) -> Json:
    """A condition of a status; empty when it has none of that type."""
    found: Iterable[Json] = status.get("conditions") or ()
    return next((each for each in found if each.get("type") == kind), {})


def is_ready(pod: Json) -> bool:
    return condition(pod, "Ready").get("status") == "True"


def has_ended(pod: Json) -> bool:
    """Whether none of a pod's containers will run again: it was evicted, refused by its node, or has done its work."""
    return (pod.get("status") or {}).get("phase") in ("Failed", "Succeeded")


def is_mounted(pod: Json) -> bool:
    """Whether a pod's volumes are mounted: a container starts, or fails to start, only afterwards."""
    states: Iterable[Json] = (pod.get("status") or {}).get("containerStatuses") or ()
    # A container between two runs is waiting again: that it has run before shows in its restarts alone.
    return any(
        each.get("restartCount") or {"running", "terminated"} & set(each.get("state") or ())
        for each in states
    )


def waits_for_volumes(pod: Json) -> bool:
    """Whether a pod has a node and none of its containers can start before its volumes are mounted."""
    # Kubernetes 1.29 says when the sandbox is there, which comes after the volumes.
    if node_of(pod) is None or has_ended(pod) or is_mounted(pod):
        return False
    if condition(pod, "PodReadyToStartContainers").get("status") == "True":
        return False
    status = pod.get("status") or {}
    states = [
        each.get("state") or {}
        for statuses in ("initContainerStatuses", "containerStatuses")
        for each in status.get(statuses) or ()
    ]
    return all(
        not {"running", "terminated"} & set(each)
        and (each.get("waiting") or {}).get("reason") in _CREATING
        for each in states
    )


def node_of(pod: Json) -> str | None:
    return (pod.get("spec") or {}).get("nodeName")


def group_of(pod: Json) -> int | None:
    """The number of the group that a pod belongs to; None for one on its own."""
    return parse_count((pod["metadata"].get("labels") or {}).get(GROUP_INDEX))


def as_started(pods: Iterable[Json], leaders: Iterable[Json]) -> list[Json]:
    """The workers of groups, each as far as its leader: a group starts as one, and a worker has no probe of its own."""
    known = {group_of(pod): pod.get("status") or {} for pod in leaders}
    return [{**pod, "status": known.get(group_of(pod), pod.get("status"))} for pod in pods]


def nodes_of(pods: Iterable[Json]) -> set[str]:
    """The nodes that pods have been placed on."""
    return {name for pod in pods if (name := node_of(pod)) is not None}


def of_version(pods: Iterable[Json], version: str) -> list[Json]:
    """The pods of a version, by its id."""
    return [pod for pod in pods if has_labels(pod, {REVISION: version})]


def is_rolling(servers: Sequence[Json], version: str) -> bool:
    """Whether some of the servers are of another version: one replaces the other in place."""
    return len(of_version(servers, version)) < len(servers)


def asked_replicas(workload: Json) -> int:
    """The replicas that were asked for, without those that replace servers on leaving nodes.

    Another autoscaler may not have added these yet; and if it asks for more than all, it needs all of them.
    """
    surge = (workload["metadata"].get("annotations") or {}).get(SURGE, "")
    count = int(workload["spec"].get("replicas", 1))
    asked, _, more = surge.partition("+")
    least, extra = parse_count(asked, most=MOST_REPLICAS), parse_count(more, most=MOST_REPLICAS)
    if least is None or extra is None:
        return count
    return least if least <= count <= least + extra else count


def asked_of(documents: Iterable[Json], deployments: Collection[str]) -> int:
    """The replicas that were asked for, of all Deployments with these names."""
    return sum(
        asked_replicas(each)
        for each in documents
        if each["kind"] == "Deployment" and each["metadata"]["name"] in deployments
    )


def deployed_version(deployment: Json) -> str:
    """The id of the version that the pods of a Deployment or LeaderWorkerSet are made from; empty where it has none."""
    labels = pod_template(deployment)["metadata"].get("labels") or {}
    return str(labels.get(REVISION, ""))


def pod_template(workload: Json) -> Json:
    """The pod template of the servers that a Deployment or a LeaderWorkerSet keeps."""
    spec: Json = workload["spec"]
    if "template" in spec:
        return dict(spec["template"])
    groups = spec["leaderWorkerTemplate"]
    # Without a template of its own, a leader is as its workers.
    return dict(groups.get("leaderTemplate") or groups["workerTemplate"])


def server_labels(workload: Json) -> Mapping[str, str]:
    """The labels that select the servers of a Deployment, or the leaders of a LeaderWorkerSet."""
    if "selector" in workload["spec"]:
        selected: Json = workload["spec"]["selector"]["matchLabels"]
        return selected
    labels = pod_template(workload)["metadata"]["labels"]
    return {name: labels[name] for name in (WORKSPACE, ROLE, UID) if name in labels}


def container_ports(spec: Json) -> list[int]:
    """The ports by which Services and scrapes reach a pod, from its spec."""
    return [
        int(port["containerPort"])
        for container in spec.get("containers") or ()
        for port in container.get("ports") or ()
        if port.get("name") == PORT_NAME
    ]
