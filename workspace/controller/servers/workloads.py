"""The object that keeps a Workspace's own servers: a Deployment, or a LeaderWorkerSet where each spans nodes. Pure.

A version of the other kind gets an object of its own beside it, and the one before goes once the new servers are ready.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from workspace.controller.observation.cluster_state import server_count
from workspace.controller.observation.objects import is_owned
from workspace.controller.observation.observed import LWS_GROUP, Observed, Reference, reference
from workspace.controller.observation.revisions import Revision
from workspace.render import groups, names
from workspace.render.deployments import deployment, group_set
from workspace.render.routing import SystemSettings
from workspace.schema import Workspace

Json = dict[str, Any]
# An object by its kind and name; None where there is none.
Find = Callable[[str, str], Json | None]


def own_objects(objects: Iterable[Json], uid: str) -> list[Json]:
    """Pods, and what the Workspace with this uid made. Another's object of a name says nothing of our servers."""
    return [each for each in objects if each["kind"] == "Pod" or is_owned(each, uid)]


def find_in(objects: Iterable[Json]) -> Find:
    """Finds an object among some by its kind and name."""
    found = {(each["kind"], each["metadata"]["name"]): each for each in objects}
    return lambda kind, name: found.get((kind, name))


def own_workload(workspace: Workspace, find: Find) -> Json | None:
    """The one that exists; of both kinds, while one replaces the other, that of the spec."""
    found = (
        find("Deployment", workspace.name),
        find(groups.KIND, names.group(workspace.name)),
    )
    ordered = reversed(found) if workspace.spec.resources.nodes > 1 else found
    return next((each for each in ordered if each is not None), None)


def on_demand_beside(current: Json | None, workspace: Workspace, find: Find) -> Json | None:
    """The Deployment of those servers beside the current one's that never run on spot. Groups have none."""
    if current is not None and current["kind"] == groups.KIND:
        return None
    return find("Deployment", names.on_demand(workspace.name))


def own_workloads(workspace: Workspace, find: Find) -> list[Json]:
    """All that exist and keep servers that aren't those of a new version beside them."""
    found = [find("Deployment", name) for name in names.with_on_demand(workspace.name)]
    found.append(find(groups.KIND, names.group(workspace.name)))
    return [each for each in found if each is not None]


def workload(
    workspace: Workspace, version: Revision, *, replicas: int, environment: SystemSettings,
    current: Json | None = None, surge: int = 0,
) -> Json:  # fmt: skip
    """The object that keeps `replicas` servers of a version. `current` is the one that exists now."""
    if version.worker is not None:
        return group_set(
            workspace, version.template, version.worker, size=version.nodes, replicas=replicas,
            surge=surge,
        )  # fmt: skip
    # Immutable in apps/v1: one that was made with other labels keeps those for its life.
    selector: Mapping[str, str] | None = None
    if current is not None and current["kind"] == "Deployment":
        selector = current["spec"]["selector"]["matchLabels"]
    return deployment(
        workspace,
        version.template,
        replicas=replicas,
        startup_seconds=version.startup_seconds,
        environment=environment,
        selector=selector,
        surge=surge,
    )


def kind_of(version: Revision) -> str:
    """The kind of object that keeps a version's servers."""
    return "Deployment" if version.worker is None else groups.KIND


def has_workers(observed: Observed, *versions: Revision | None) -> bool:
    """Whether some server spans nodes, or one of these versions does."""
    spans = any(each is not None and each.worker is not None for each in versions)
    return spans or bool(observed.pods(names.WORKER))


def is_missing(version: Revision | None, observed: Observed) -> bool:
    """Whether a version needs a kind of object that the cluster lacks."""
    spans = version is not None and version.worker is not None
    return spans and LWS_GROUP not in observed.groups


def kept_workloads(
    workspace: Workspace, observed: Observed, active: Revision | None, *, goal: int
) -> set[Reference]:
    """The existing ones whose servers are needed as they are.

    Those of the other kind until the version to run has all of its servers; all, while no version to run is known.
    """
    kept = own_workloads(workspace, find_in(own_objects(observed.objects, observed.uid)))
    if active is None:
        return {reference(each) for each in kept}
    _, ready = server_count(observed, active)
    others = (each for each in kept if each["kind"] != kind_of(active))
    return {reference(each) for each in others if ready < goal}
