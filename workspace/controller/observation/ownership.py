"""Whose an object is: owner references, names that others' objects have taken, and what then stays as it is. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from workspace.controller.observation.objects import is_owned
from workspace.controller.observation.observed import Action, Apply, Observed, Reference, reference

Json = dict[str, Any]

# With a conflict of the first kinds, objects of the second kinds stay as they are: requests could reach another's
# servers, or servers run without their policy or with another's identity.
_DECISIVE: Final = frozenset(
    {"Deployment", "LeaderWorkerSet", "Service", "ServiceAccount", "NetworkPolicy"}
)
_RUNNING: Final = frozenset({
    "Deployment", "LeaderWorkerSet", "Service", "Pod", "Job", "HorizontalPodAutoscaler", "ScaledObject",
})  # fmt: skip


def owned_by(document: Json, workspace: Json) -> Json:
    """The document with the Workspace as its controller, which deletes it with the Workspace."""
    owner = {
        "apiVersion": workspace["apiVersion"],
        "kind": workspace["kind"],
        "name": workspace["metadata"]["name"],
        "uid": workspace["metadata"]["uid"],
        "controller": True,
        # With foreground deletion, the Workspace stays until this object is gone.
        "blockOwnerDeletion": True,
    }
    return {**document, "metadata": {**document["metadata"], "ownerReferences": [owner]}}


def owned_or_conflicting(
    wanted: Iterable[Json], observed: Observed
) -> tuple[list[Json], list[Reference]]:
    """Excludes objects whose names are taken by objects that aren't the Workspace's; returns those as conflicts."""
    ours: list[Json] = []
    conflicts: list[Reference] = []
    for each in wanted:
        found = observed.find(each["kind"], each["metadata"]["name"])
        if found is None or is_owned(found, observed.uid):
            ours.append(each)
        else:
            conflicts.append(reference(each))
    return ours, conflicts


def permitted(actions: Iterable[Action], conflicts: Iterable[Reference]) -> list[Action]:
    """The actions to carry out beside conflicts. Law: with a decisive one, nothing starts, stops or is switched."""
    if not any(each.kind in _DECISIVE for each in conflicts):
        return list(actions)
    return [each for each in actions if _kind_of(each) not in _RUNNING]


def _kind_of(action: Action) -> str:
    kind = action.document["kind"] if isinstance(action, Apply) else action.reference.kind
    return str(kind)
