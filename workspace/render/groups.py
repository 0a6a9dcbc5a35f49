"""A replica on several nodes: the pods of a group, and the LeaderWorkerSet that keeps groups.

A group is one leader, which is a server like any other, and workers, which only compute for it. Both are made from the
same pod template. A group starts as one: vLLM's workers wait for the leader's name and port, so they must not wait for
its readiness. It ends as one too: a process that lost another can't go on.
"""

from __future__ import annotations

from typing import Any, Final

from workspace.node_demands import queue_label
from workspace.node_terms import is_in
from workspace.render import drain, names
from workspace.render.pod import inference_pool_labels
from workspace.render.release import Release
from workspace.schema import Workspace

Json = dict[str, Any]

API_VERSION: Final = "leaderworkerset.x-k8s.io/v1"
KIND: Final = "LeaderWorkerSet"
_NAME_SERVERS: Final = [{"port": 53, "protocol": protocol} for protocol in ("UDP", "TCP")]
# Of a worker: nobody sends it requests.
_OF_SERVERS: Final = ("ports", "startupProbe", "readinessProbe", "livenessProbe")


def members(workspace: Workspace, uid: str | None) -> Json:
    """Selects the pods of a Workspace's groups: leaders and workers."""
    labels = names.selector(workspace.name, names.SERVER, uid)
    del labels[names.ROLE]
    return {
        "matchLabels": labels,
        "matchExpressions": [is_in(names.ROLE, [names.SERVER, names.WORKER])],
    }


def leader_template(workspace: Workspace, template: Json) -> Json:
    """The pod template of a leader, from that of a server."""
    # Kueue admits the group as one, by the label of its LeaderWorkerSet.
    return _member(workspace, template, without=queue_label(workspace.spec.resources))


def worker_template(workspace: Workspace, release: Release, template: Json) -> Json:
    """The pod template of a worker, from that of a server."""
    without = {**queue_label(workspace.spec.resources), **inference_pool_labels(workspace.name)}
    made = _member(workspace, template, without=without)
    metadata, spec = made["metadata"], made["spec"]
    # A worker has no HTTP server that could be scraped.
    scraped = names.scraped("", 0)
    shown = {k: v for k, v in metadata["annotations"].items() if k not in scraped}
    server, *sidecars = spec["containers"]
    stop = drain.until_leader_ends(
        port=release.plan.port, seconds=workspace.spec.runtime.drain_seconds
    )
    container = {
        **{name: value for name, value in server.items() if name not in _OF_SERVERS},
        "command": list(release.template.worker_command),
        "args": list(release.plan.worker_args),
        "lifecycle": {"preStop": {"exec": {"command": stop}}},
    }
    return {
        "metadata": {
            "labels": {**metadata["labels"], names.ROLE: names.WORKER}, "annotations": shown,
        },
        "spec": {**spec, "containers": [container, *sidecars]},
    }  # fmt: skip


def leader_worker_set(
    metadata: Json, leader: Json, worker: Json, *, size: int, replicas: int
) -> Json:
    """The object that keeps `replicas` groups of `size` pods. A new version's group starts beside the old ones."""
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": metadata,
        "spec": {
            "replicas": replicas,
            # Workers join before the leader can be ready.
            "startupPolicy": "LeaderCreated",
            "leaderWorkerTemplate": {
                "size": size,
                "restartPolicy": "RecreateGroupOnPodRestart",
                "leaderTemplate": leader,
                "workerTemplate": worker,
            },
            "rolloutStrategy": {
                "type": "RollingUpdate",
                "rollingUpdateConfiguration": {"maxUnavailable": 0, "maxSurge": 1},
            },
        },
    }


def group_policy(workspace: Workspace, metadata: Json, uid: str | None) -> Json:
    """Lets the pods of groups reach each other on any port, and name servers: processes choose ports as they start.

    Nobody else reaches workers, and they reach nobody else.
    """
    own = members(workspace, uid)
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata,
        "spec": {
            "podSelector": own,
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [{"podSelector": own}]}],
            "egress": [{"to": [{"podSelector": own}]}, {"ports": _NAME_SERVERS}],
        },
    }


def _member(workspace: Workspace, template: Json, *, without: Json) -> Json:
    labels = template["metadata"]["labels"]
    # Leaders and workers together: to a node, and to its GPUs, one is like the other.
    spread = [
        {**each, "labelSelector": members(workspace, labels.get(names.UID))}
        for each in template["spec"]["topologySpreadConstraints"]
    ]
    return {
        "metadata": {
            **template["metadata"],
            "labels": {name: value for name, value in labels.items() if name not in without},
        },
        "spec": {**template["spec"], "topologySpreadConstraints": spread},
    }
