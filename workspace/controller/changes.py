"""The writes that bring the observed objects to the desired ones. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final

from workspace.controller.observation.compare import holds
from workspace.controller.observation.objects import is_owned
from workspace.controller.observation.observed import Apply, Delete, Observed, Reference, reference
from workspace.controller.servers.prewarm_pods import is_spent

Json = dict[str, Any]

# Kinds that the controller creates. Objects of other kinds are never deleted.
OWN_KINDS: Final = (
    "Deployment", "Service", "ServiceAccount", "PodDisruptionBudget", "NetworkPolicy", "ResourceQuota",
    "LimitRange", "HorizontalPodAutoscaler", "ScaledObject", "HTTPRoute", "InferencePool", "ControllerRevision",
    "PodTemplate", "CapacityBuffer", "Pod", "Job", "LeaderWorkerSet",
)  # fmt: skip


def applies(observed: Observed, wanted: Sequence[Json]) -> list[Apply]:
    """The objects to write, in their order: those that are missing or differ."""
    return [Apply(each) for each in wanted if _is_due(observed, each)]


def deletes(
    observed: Observed, *, keep: Collection[Reference], superfluous: Collection[str]
) -> list[Delete]:
    """The Workspace's own objects to delete: all but those to keep; of versions, the superfluous ones, by name."""
    return [
        Delete(reference(each), str(each["metadata"]["uid"]))
        for each in observed.objects
        if each["kind"] in OWN_KINDS
        and is_owned(each, observed.uid)
        and "deletionTimestamp" not in each["metadata"]
        and (
            each["metadata"]["name"] in superfluous
            if each["kind"] == "ControllerRevision"
            else reference(each) not in keep or is_spent(each)
        )
    ]


def _is_due(observed: Observed, each: Json) -> bool:
    found = observed.find(each["kind"], each["metadata"]["name"])
    if found is None:
        return True
    if "deletionTimestamp" in found["metadata"] or each["kind"] in ("Pod", "Job"):
        return False  # its spec is immutable; a changed one has another name
    return not holds(found, each)
