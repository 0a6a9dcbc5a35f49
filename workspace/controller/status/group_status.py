"""What a Workspace's status says of servers on several nodes alone. Pure."""

from __future__ import annotations

from workspace.controller import conditions
from workspace.controller.conditions import StatusCondition
from workspace.controller.observation.observed import Observed
from workspace.controller.observation.revisions import Revision
from workspace.controller.reasons import Reason
from workspace.controller.servers.workloads import is_missing
from workspace.render import names


def missing_kind(version: Revision | None, observed: Observed) -> StatusCondition | None:
    """The Scheduled condition where the cluster lacks what keeps groups."""
    if not is_missing(version, observed):
        return None
    return StatusCondition(
        conditions.SCHEDULED, False, Reason.GROUPS_MISSING,
        "The cluster has no leaderworkerset.x-k8s.io API, which keeps servers on several nodes. Install "
        "LeaderWorkerSet, or take spec.resources.nodes away.",
    )  # fmt: skip


def being_created(workspace: str, version: Revision | None) -> str:
    """A Deployment says what keeps its pods from being created. Of groups only Events of StatefulSets do."""
    text = "Servers are being created."
    if version is None or version.worker is None:
        return text
    return f"{text} If none appear, kubectl describe statefulset {names.group(workspace)} says why."
