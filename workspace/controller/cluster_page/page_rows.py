"""What the cluster's page shows of a Workspace: what its server waits for, versions, rollout, replicas, starts. Pure.

Conditions say what holds a server up, in the order of its way to the first request: the first that isn't true does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from cache_agent.api.page.starts import start_row
from cache_agent.api.page.view import Row
from workspace.controller import conditions
from workspace.controller.cluster_page.rollout_row import rollout_row
from workspace.controller.observation.mount_news import MountNews
from workspace.controller.observation.objects import condition_in, has_ended, is_ready, node_of
from workspace.controller.observation.pod_problems import pod_problem
from workspace.controller.observation.revisions import version_id
from workspace.controller.reasons import Reason
from workspace.render import names

Json = dict[str, Any]

_STEPS: Final = (
    (conditions.MODEL_RESOLVED, "Model resolved"),
    (conditions.CACHED, "Model on its nodes"),
    (conditions.SCHEDULED, "Place for each replica"),
    (conditions.AVAILABLE, "Server answers"),
)
# What only takes time, or waits because people said so. All other reasons of a condition that isn't true are problems.
UNDER_WAY: Final = conditions.IN_PROGRESS | {
    Reason.ROLLING_OUT, Reason.COMPARING, Reason.INCONCLUSIVE, Reason.PAUSED, Reason.PROMOTING, Reason.STOPPED,
    Reason.SCALED_TO_ZERO, Reason.NOT_NEEDED, Reason.ACTIVATOR_NOT_READY, "",
}  # fmt: skip
_BRIEF: Final = ("name", "space", "ready", "bad", "reason", "why")
_ID_DIGITS: Final = 20
_MOST_SAID: Final = 1000  # characters
_MOST_PODS: Final = 64
_MOST_VERSIONS: Final = 16
_MOST_STARTS: Final = 4


def workspace_row(
    document: Json,
    objects: Sequence[Json],
    mounts: Mapping[str, MountNews],
    load: Row | None = None,
) -> Row:
    """A Workspace's row. `load`: its requests that run and wait, where they are measured."""
    metadata, status = document["metadata"], document.get("status") or {}
    ready = condition_in(status, conditions.READY)
    versions = _versions(objects, status)
    numbers = {each["id"]: each.get("number", 0) for each in versions}
    row: Row = {
        "name": metadata["name"],
        "space": metadata.get("namespace", ""),
        "ready": ready.get("status") == "True",
        # While a version is rolled out, or after it was taken back, the one before answers.
        "serves": condition_in(status, conditions.AVAILABLE).get("status") == "True",
        "reason": str(ready.get("reason") or "Unseen"),
        "why": _said(ready.get("message")),
        "bad": is_bad(ready),
        "replicas": status.get("replicas", 0),
        "readyReplicas": status.get("readyReplicas", 0),
        "steps": _steps(status),
        "versions": versions,
        "rollout": rollout_row(document, numbers),
        "pods": _pods(objects, mounts),
        "starts": [start_row(each) for each in (status.get("startup") or ())[:_MOST_STARTS]],
        "image": status.get("image") or _asked(document),
        "variant": status.get("variant"),
        "cached": status.get("cached"),
        "url": status.get("url"),
        "model": _model(status.get("modelKey")),
        **(load or {}),
    }
    return {name: value for name, value in row.items() if value not in (None, "", [])}


def workspace_brief(row: Row) -> Row:
    """Of a row, what decides whether a view shows it, and what it says of a Workspace that isn't shown."""
    return {name: row[name] for name in _BRIEF if name in row}


def is_bad(found: Json) -> bool:
    """Whether a condition tells of a problem, and not of something that only takes time."""
    return found.get("status") == "False" and found.get("reason", "") not in UNDER_WAY


def workspace_problem(row: Row) -> Row | None:
    """The problem of a Workspace, with what to do; None without one."""
    if not row.get("bad"):
        return None
    where = f"{row['space']}/{row['name']}"
    return {"where": where, "what": row.get("why") or row["reason"], "workspace": where}


def _steps(status: Json) -> list[Row]:
    found: list[Row] = []
    blocked = False
    for kind, title in _STEPS:
        each = condition_in(status, kind)
        done = each.get("status") == "True"
        state = "done" if done else "later" if blocked else "failed" if is_bad(each) else "now"
        blocked = blocked or not done
        row = {
            "title": title, "state": state, "reason": each.get("reason"), "said": _said(each.get("message")),
            "since": each.get("lastTransitionTime"),
        }  # fmt: skip
        found.append({name: value for name, value in row.items() if value})
    return found


def _versions(objects: Iterable[Json], status: Json) -> list[Row]:
    """The newest versions first. One that was edited by hand shows what it has."""
    revisions = [each for each in objects if each["kind"] == "ControllerRevision"]
    # By the number and not by age: a version that returns gets the highest number again.
    revisions.sort(key=lambda each: -_number(each.get("revision")))
    found = []
    for each in revisions[:_MOST_VERSIONS]:
        given = each.get("data")
        data: Json = given if isinstance(given, dict) else {}
        row = {
            "number": _number(each.get("revision")),
            "id": version_id(each["metadata"]["name"]),
            "image": str(data.get("image") or ""),
            "variant": str(data.get("variant") or ""),
            "wanted": each.get("revision") == status.get("revision"),
        }
        found.append({name: value for name, value in row.items() if value})
    return found


def _pods(objects: Iterable[Json], mounts: Mapping[str, MountNews]) -> list[Row]:
    """The servers' pods by name, those that aren't ready first."""
    pods = [
        each
        for each in objects
        if each["kind"] == "Pod"
        and (each["metadata"].get("labels") or {}).get(names.ROLE) == names.SERVER
    ]
    pods.sort(key=lambda each: (is_ready(each), each["metadata"]["name"]))
    return [_pod(each, mounts) for each in pods[:_MOST_PODS]]


def _pod(pod: Json, mounts: Mapping[str, MountNews]) -> Row:
    metadata = pod["metadata"]
    news = mounts.get(str(metadata.get("uid")))
    problem = pod_problem(pod, news)
    # The first that applies counts: a ready pod serves whatever its past, and
    # one that is deleted isn't failing.
    state = "starting" if node_of(pod) else "waiting for a node"
    if is_ready(pod):
        state = "ready"
    elif metadata.get("deletionTimestamp"):
        state = "ending"
    elif has_ended(pod):
        state = "ended"
    elif problem:
        state = "failing"
    waits = news.words if news is not None and not is_ready(pod) else ""
    row = {
        "name": metadata["name"], "state": state, "node": node_of(pod),
        "version": (metadata.get("labels") or {}).get(names.REVISION),
        "since": metadata.get("creationTimestamp"), "why": _said(problem.message if problem else waits),
    }  # fmt: skip
    return {name: value for name, value in row.items() if value}


def _asked(document: Json) -> str:
    """The model that a Workspace asks for, before its image is known."""
    model = (document.get("spec") or {}).get("model") or {}
    return str(model.get("image") or "") if isinstance(model, dict) else ""


def _model(key: Any) -> str | None:
    return key.removeprefix("sha256:")[:_ID_DIGITS] if isinstance(key, str) else None


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _said(text: Any) -> str:
    return str(text or "")[:_MOST_SAID]
