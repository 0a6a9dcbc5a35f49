"""Versions of a Workspace, each stored in a ControllerRevision: the spec, the resolved image, the pod template.

A version is identified by its spec, so returning to an earlier spec finds the earlier version with the digest that its
tag then had, and needs no registry. Its pod template is stored, so upgrading Weightyard restarts no server. The
Deployment's own history can't be used: the controller would undo an undo.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from modelimage.digest import Digest
from workspace.render import names
from workspace.render.groups import leader_template, worker_template
from workspace.render.pod import pod_template, trace_parent
from workspace.render.release import Release
from workspace.render.routing import meta
from workspace.schema import Resources, Workspace

Json = dict[str, Any]

# The parts of a spec that determine the pod; the others change nothing that runs.
POD_PARTS = ("model", "runtime", "resources", "placement", "template")


@dataclass(frozen=True, slots=True)
class Revision:
    """One version. `number` grows with every rollout, also when an old version returns.

    A server on several `nodes` has a pod of `template` and others of `worker`.
    """

    name: str
    number: int
    requested: Json
    image: str
    key: Digest
    variant: str
    gpus: int
    context: int | None
    startup_seconds: int
    reasons: tuple[str, ...]
    template: Json
    nodes: int = 1
    worker: Json | None = None

    @property
    def node_gpus(self) -> int:
        """GPUs of each node of a server."""
        return self.gpus // self.nodes

    @property
    def id(self) -> str:
        """The value of the revision label on this version's pods."""
        return version_id(self.name)

    @property
    def trace(self) -> str:
        """The `traceparent` of this version's starts; empty if it isn't traced."""
        annotations = self.template["metadata"].get("annotations") or {}
        return str(annotations.get(names.TRACE, ""))

    @property
    def resources(self) -> Resources:
        """What this version asks of a node, which the spec may no longer say."""
        return Resources.model_validate(self.requested.get("resources", {}))


def version_id(name: str) -> str:
    """The value of the revision label on a version's pods, from the version's name."""
    return name.rpartition("-")[2]


def requested(workspace: Workspace) -> Json:
    """The identity of a version: the parts of the spec that determine the pod."""
    spec = workspace.to_document()["spec"]
    parts = {name: spec[name] for name in POD_PARTS if name in spec}
    _drop_counts(parts.get("resources", {}))
    # The time of a restart is asked for too: nothing else tells the new pods of
    # the same spec from the old ones.
    restarted = workspace.spec.rollout.restarted_at
    return {**parts, **({"rollout": {"restartedAt": restarted}} if restarted else {})}


def _drop_counts(resources: Json) -> None:
    """Drops how many servers run where, and how many nodes are spares: no edit of them restarts a pod."""
    provisioning = resources.get("provisioning", {})
    provisioning.pop("warmSpares", None)
    # An empty `capacity` demands that of its defaults, so it stays; an empty `provisioning` says nothing.
    provisioning.get("capacity", {}).pop("onDemandMinimum", None)
    if not provisioning:
        resources.pop("provisioning", None)


def revision_name(workspace: Workspace) -> str:
    text = json.dumps(requested(workspace), sort_keys=True, separators=(",", ":"))
    return f"{workspace.name}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def new_revision(
    workspace: Workspace,
    release: Release,
    *,
    number: int,
    uid: str | None = None,
    traced: bool = False,
) -> Revision:
    """The version that a Workspace's spec now describes, as planned. `traced`: see `pod_template`."""
    name, plan = revision_name(workspace), release.plan
    template = pod_template(workspace, release, revision=version_id(name), uid=uid, traced=traced)
    spans = plan.nodes > 1
    return Revision(
        name=name,
        number=number,
        requested=requested(workspace),
        image=release.model,
        key=release.key,
        variant=plan.variant,
        gpus=plan.gpus,
        context=plan.context,
        startup_seconds=plan.probes.startup_seconds,
        reasons=plan.reasons,
        template=leader_template(workspace, template) if spans else template,
        nodes=plan.nodes,
        worker=worker_template(workspace, release, template) if spans else None,
    )


def trace_of(target: object, workspace: Workspace, uid: str, *, traced: bool) -> str:
    """The `traceparent` of a version, or, before it is planned, that which it will have if versions are `traced`."""
    if isinstance(target, Revision):
        return target.trace
    return trace_parent(workspace, version_id(revision_name(workspace)), uid) if traced else ""


def to_document(workspace: Workspace, revision: Revision) -> Json:
    """The ControllerRevision. Law: `from_document(to_document(w, r)) == r`."""
    return {
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": meta(workspace, revision.name),
        # The API server lets this number alone change: the data of a ControllerRevision is immutable.
        "revision": revision.number,
        "data": {
            "requested": revision.requested,
            "image": revision.image,
            "key": str(revision.key),
            "variant": revision.variant,
            "gpus": revision.gpus,
            "context": revision.context or 0,
            "startupSeconds": revision.startup_seconds,
            "reasons": list(revision.reasons),
            "template": revision.template,
            **({"nodes": revision.nodes} if revision.nodes > 1 else {}),
            **({"worker": revision.worker} if revision.worker is not None else {}),
        },
    }


def from_document(document: Json) -> Revision:
    """Parses a ControllerRevision. One that was edited by hand may raise KeyError or InvalidInput."""
    data = document["data"]
    return Revision(
        name=document["metadata"]["name"],
        number=document["revision"],
        requested=data["requested"],
        image=data["image"],
        key=Digest.parse(data["key"]),
        variant=data["variant"],
        gpus=data["gpus"],
        context=data["context"] or None,
        startup_seconds=data["startupSeconds"],
        reasons=tuple(data["reasons"]),
        template=data["template"],
        # Versions that were stored without these fields never get them: they are of one node.
        nodes=data.get("nodes", 1),
        worker=data.get("worker"),
    )


def has_version(document: Json) -> bool:
    """Whether a ControllerRevision is one of ours."""
    return "key" in (document.get("data") or {})


def history(documents: Iterable[Json], workspace: str) -> list[Revision]:
    """All stored versions of a Workspace, oldest first."""
    found = [
        from_document(each)
        for each in documents
        if each["kind"] == "ControllerRevision"
        and has_version(each)
        and (each["metadata"].get("labels") or {}).get(names.WORKSPACE) == workspace
    ]
    return sorted(found, key=lambda revision: revision.number)


def superfluous(kept: list[Revision], *, limit: int, in_use: set[str]) -> list[Revision]:
    """The oldest versions beyond the limit, never one in use."""
    excess = len(kept) - limit
    return [each for each in kept if each.name not in in_use][: max(0, excess)]
