"""What keeps a Workspace's servers: its own Deployment, or its LeaderWorkerSet, and the Deployment of a new version.

The pod template is passed as data, since a version's template is stored in its ControllerRevision and outlives upgrades
of this code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workspace.node_demands import kept_off_spot, queue_label
from workspace.render import groups, names
from workspace.render.routing import SystemSettings, meta
from workspace.schema import Workspace

Json = dict[str, Any]


def deployment(
    workspace: Workspace, template: Json, *, replicas: int, startup_seconds: int,
    environment: SystemSettings, selector: Mapping[str, str] | None = None, surge: int = 0,
) -> Json:  # fmt: skip
    """The servers' Deployment. A new version starts beside the old one, which stops once the new one is ready.

    `selector` is that of the existing Deployment, which can't change. `surge` adds replicas.
    """
    uid = template["metadata"]["labels"].get(names.UID)
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            **_queued(workspace, workspace.name),
            **({"annotations": _surged(replicas, surge)} if surge else {}),
        },
        "spec": {
            "replicas": replicas + surge,
            # Versions are kept in ControllerRevisions, so old ReplicaSets aren't needed for
            # `rollout undo`.
            "revisionHistoryLimit": 2,
            # More than a start may take: a Deployment that is late counts as failed, however healthy.
            "progressDeadlineSeconds": startup_seconds + environment.quiet_seconds,
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
            },
            "selector": {
                "matchLabels": dict(selector or names.selector(workspace.name, names.SERVER, uid))
            },
            "template": template,
        },
    }


def group_set(
    workspace: Workspace, leader: Json, worker: Json, *, size: int, replicas: int, surge: int = 0
) -> Json:  # fmt: skip
    """The LeaderWorkerSet of servers on `size` nodes each. `surge` adds replicas."""
    metadata = _queued(workspace, names.group(workspace.name))
    if surge:
        metadata["annotations"] = _surged(replicas, surge)
    return groups.leader_worker_set(metadata, leader, worker, size=size, replicas=replicas + surge)


def candidate_deployment(
    workspace: Workspace, template: Json, *, replicas: int, startup_seconds: int, environment: SystemSettings,
    surge: int = 0,
) -> Json:  # fmt: skip
    """The Deployment of a new version's servers beside the Workspace's own. Their label tells the two apart."""
    labels = template["metadata"]["labels"] | {names.TRACK: names.CANDIDATE}
    selector = names.selector(workspace.name, names.SERVER, labels.get(names.UID))
    made = deployment(
        workspace,
        {**template, "metadata": {**template["metadata"], "labels": labels}},
        replicas=replicas,
        startup_seconds=startup_seconds,
        environment=environment,
        selector={**selector, names.TRACK: names.CANDIDATE},
        surge=surge,
    )
    metadata = {**made["metadata"], **_queued(workspace, names.candidate(workspace.name))}
    return {**made, "metadata": metadata}


def on_demand_deployment(made: Json, *, replicas: int, surge: int = 0) -> Json:
    """The Deployment of those servers of `made` that never run on spot capacity.

    A Deployment's pods are all alike, so a number of them that is placed otherwise takes a second one.
    """
    metadata, spec = made["metadata"], made["spec"]
    template = spec["template"]
    labels = {names.CAPACITY: names.ON_DEMAND}
    pod = {**template["spec"], "affinity": kept_off_spot(template["spec"].get("affinity") or {})}
    return {
        **made,
        "metadata": {
            # The surge of the other Deployment isn't this one's.
            **{name: each for name, each in metadata.items() if name != "annotations"},
            "name": names.on_demand(metadata["name"]),
            **({"annotations": _surged(replicas, surge)} if surge else {}),
        },
        "spec": {
            **spec,
            "replicas": replicas + surge,
            # The other's selector matches these pods too, which is safe: ReplicaSets select by a hash of
            # their template as well, and adopt only pods without an owner.
            "selector": {"matchLabels": {**spec["selector"]["matchLabels"], **labels}},
            "template": {
                "metadata": {
                    **template["metadata"],
                    "labels": {**template["metadata"]["labels"], **labels},
                },
                "spec": pod,
            },
        },
    }


def _surged(replicas: int, surge: int) -> dict[str, str]:
    """The annotation that tells the replicas that were asked for from those that only stand in for others."""
    return {names.SURGE: f"{replicas}+{surge}"}


def _queued(workspace: Workspace, name: str) -> Json:
    """Metadata of what keeps servers, with the label by which Kueue admits their pods if the spec names a queue."""
    metadata = meta(workspace, name)
    return {**metadata, "labels": {**metadata["labels"], **queue_label(workspace.spec.resources)}}
