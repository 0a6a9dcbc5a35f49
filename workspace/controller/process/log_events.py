"""The events of the controller's log: their names, which programs may rely on, and the ids that join lines.

A call of `logger` names its event by `extra=about(...)`; its text is for people and may change.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

# By name: what it means.
EVENTS: Final[Mapping[str, str]] = {
    "health served": "The health server answers.",
    "page served": "The page answers.",
    "leading": "This controller leads from now on.",
    "leadership lost": "Another controller leads, or the Lease could not be renewed.",
    "lease not released": "The Lease could not be released at the end; it lapses by itself.",
    "object applied": "An object of a Workspace was written.",
    "object deleted": "An object of a Workspace was deleted.",
    "pass failed": "A pass over an object failed; it is tried again.",
    "pass failed unexpectedly": "The same with an error that is a bug, or unforeseen input; with its traceback.",
    "error not reported": "Such an error could not be written to the object's status.",
    "work failed": "The work for one object of a loop failed: scaling, starts, analyses.",
    "replicas changed": "The built-in autoscaler decided on another number of replicas.",
    "probes asked": "The probes of a new version were asked.",
    "probes not answered": "Servers answered some of them too late; these are asked again.",
    "server log not readable": "Starts are shown without the server's own stages: the right to read logs is missing.",
    "startup taint removed": "A node's pinned models are verified, and it takes pods.",
    "agent silent": "A node's agent has sent no heartbeat for long.",
    "agent not marked": "A silent agent's NodeCache could not be marked so.",
    "heartbeats not read": "The agents' heartbeats could not be read.",
    "event not recorded": "A Kubernetes Event could not be written.",
    "event withheld": "A Kubernetes Event was not written: its object has had too many.",
    "kind missing": "The cluster lacks a kind of object: Weightyard's CRDs aren't installed.",
    "watch failed": "A kind of object can't be watched.",
    "object not readable": "An object of a list or watch can't be read, and was skipped.",
}  # fmt: skip


def about(event: str, **ids: str) -> dict[str, Any]:
    """The `extra` of a log call: the event's name, and ids such as `workspace`, `node` and `pod`."""
    return {"event_name": event, "event_ids": ids}
