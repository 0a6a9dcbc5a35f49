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
    found = [
        Delete(reference(each), str(each["metadata"]["uid"]))
        # The uid is a precondition: an object of the same name that somebody makes meanwhile is left alone.
        for each in observed.objects
        if each["kind"] in OWN_KINDS
        and is_owned(each, observed.uid)
        # One that waits for a finalizer would be deleted again in every pass.
        and "deletionTimestamp" not in each["metadata"]
        and (
            each["metadata"]["name"] in superfluous
            # A pass wants one version at most, and the others are the history: their number alone decides.
            if each["kind"] == "ControllerRevision"
            else reference(each) not in keep or is_spent(each)
        )
    ]
    # A route first: while it is there it sends requests to Services that go.
    return sorted(found, key=lambda delete: delete.reference.kind != "HTTPRoute")


def _is_due(observed: Observed, each: Json) -> bool:
    found = observed.find(each["kind"], each["metadata"]["name"])
    if found is None:
        return True
    # No write keeps what is being deleted. Its end is an event, and that
    # brings the pass which makes it again.
    if "deletionTimestamp" in found["metadata"] or each["kind"] in ("Pod", "Job"):
        return False  # its spec is immutable; a changed one has another name
    return not holds(found, each)
