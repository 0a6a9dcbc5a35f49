"""The Events for the change from one status of a Workspace to the next. Pure."""

from __future__ import annotations

from typing import Any

from workspace.controller import conditions
from workspace.controller.conditions import IN_PROGRESS
from workspace.controller.observation.objects import condition_in
from workspace.controller.reasons import News, Reason, reported_reason

Json = dict[str, Any]

# What was asked for, or goes on by itself.
_NORMAL = IN_PROGRESS | {
    Reason.READY,
    Reason.ROLLING_OUT,
    Reason.COMPARING,
    Reason.PROBING,
    Reason.PAUSED,
    Reason.PROMOTING,
    Reason.ABORTED,
    Reason.STOPPED,
    Reason.ACTIVATOR_NOT_READY,
}


def workspace_news(before: Json, after: Json) -> list[News]:
    """One Event for a new version, one for a new reason of Ready, one for the end of serving. None without a change."""
    return [
        *_new_version(before, after),
        *_new_reason(before, after),
        *_no_longer_served(before, after),
    ]


def _new_version(before: Json, after: Json) -> list[News]:
    old, new = before.get("revision"), after.get("revision")
    if not old or not new or old == new:
        return []
    text = f"Version {new} replaces version {old}: {after.get('variant')} of {after.get('image')}."
    return [News("Normal", Reason.ROLLING_OUT, text)]


def _new_reason(before: Json, after: Json) -> list[News]:
    was, now = (condition_in(each, conditions.READY) for each in (before, after))
    if not now or (was.get("status"), was.get("reason")) == (now["status"], now["reason"]):
        return []
    reason = reported_reason(now["reason"])
    return [News("Normal" if reason in _NORMAL else "Warning", reason, now["message"])]


def _no_longer_served(before: Json, after: Json) -> list[News]:
    was, now, ready = (
        condition_in(before, conditions.AVAILABLE),
        condition_in(after, conditions.AVAILABLE),
        condition_in(after, conditions.READY),
    )
    # Ready's own Event says it already.
    if (
        was.get("status") != "True"
        or now.get("status") != "False"
        or now["reason"] == ready.get("reason")
    ):
        return []
    text = f"No server takes requests any more. {now['message']}"
    return [News("Warning", reported_reason(now["reason"]), text)]
