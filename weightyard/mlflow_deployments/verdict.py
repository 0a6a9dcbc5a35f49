"""Decides from a Workspace's status whether it serves, goes on, or never will. Pure: the time is given.

No deadline is fixed. What only a change can repair ends the wait at once; what is tried again (a quota, a crash, a
pull) ends it when it is seen again after `PATIENCE` seconds in which nothing else got on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from workspace.controller import conditions
from workspace.controller.reasons import Reason

PATIENCE: Final = 180.0
UNSEEN: Final = "NoController"

# What stays so until somebody changes the Workspace, the image, the cluster or its rights.
FINAL: Final = frozenset({
    Reason.BUILD_FAILED, Reason.NOT_BUILT, Reason.DOES_NOT_FIT, Reason.UNKNOWN_VARIANT, Reason.INVALID_INPUT,
    Reason.NOT_FOUND, Reason.ACCESS_DENIED, Reason.INVALID_IMAGE, Reason.INVALID_CHECKPOINT, Reason.DIGEST_MISMATCH,
    Reason.PROGRESS_DEADLINE, Reason.NOT_ACCEPTED, Reason.GATEWAY_API_MISSING, Reason.NAME_CONFLICT,
    Reason.KEDA_MISSING, Reason.GROUPS_MISSING, Reason.QUOTA_NOT_ALLOWED, Reason.TEMPLATE_NOT_ALLOWED,
    Reason.REGRESSED, Reason.NEW_VERSION_FAILED, Reason.ABORTED,
})  # fmt: skip
# What waits for nodes, time or people, however long that takes.
WAITING: Final = conditions.IN_PROGRESS | {
    Reason.NO_NODE, Reason.UNSCHEDULABLE, Reason.NO_ROOM, Reason.SPARES_MISSING, Reason.CAPACITY_BUFFER_MISSING,
    Reason.ROLLING_OUT, Reason.COMPARING, Reason.PROBING, Reason.INCONCLUSIVE, Reason.PAUSED, Reason.PROMOTING,
    Reason.ACTIVATOR_NOT_READY, Reason.SCALING_UP, Reason.SCALING_DOWN,
}  # fmt: skip
_FINAL_WORDS: Final = frozenset(each.value for each in FINAL)
_WAITING_WORDS: Final = frozenset(each.value for each in WAITING)


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a deployment stands: `done`, `failed`, or neither; with the reason and the words of the condition."""

    reason: str
    message: str
    done: bool = False
    failed: bool = False

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}" if self.message else self.reason


@dataclass(slots=True)
class Judge:
    """Follows the status of one generation of a Workspace."""

    generation: int
    _best: tuple[int, ...] = ()
    _since: dict[str, float] = field(default_factory=dict)

    def judge(self, document: Mapping[str, Any], now: float) -> Verdict:
        """What the status says at `now`, in seconds of any clock that only moves forward."""
        status = document.get("status") or {}
        got = _attained(status)
        if got > self._best:
            self._best, self._since = got, {}
        found = ready_condition(document, self.generation)
        if found is None:
            unseen = "no controller has looked at the Workspace yet"
            return Verdict(UNSEEN, unseen, failed=self._persists(UNSEEN, now))
        reason, message = str(found.get("reason", "")), str(found.get("message", ""))
        # A deployment of no servers is as asked for.
        done = found.get("status") == "True" or reason == Reason.STOPPED.value
        failed = not done and (
            reason in _FINAL_WORDS or (reason not in _WAITING_WORDS and self._persists(reason, now))
        )
        return Verdict(reason, message, done=done, failed=failed)

    def _persists(self, reason: str, now: float) -> bool:
        return now - self._since.setdefault(reason, now) >= PATIENCE


def ready_condition(document: Mapping[str, Any], generation: int = 0) -> Mapping[str, Any] | None:
    """The Ready condition, if it is about this generation or a later one."""
    for each in conditions.known(dict(document)):
        if each.get("type") == conditions.READY:
            return each if int(each.get("observedGeneration") or 0) >= generation else None
    return None


def _attained(status: Mapping[str, Any]) -> tuple[int, ...]:
    """What only grows while a deployment gets on: ready servers, nodes with the model, steps of a rollout."""
    cached = str(status.get("cached", "")).partition("/")[0]
    step = int((status.get("rollout") or {}).get("step") or 0)
    nodes = int(cached) if cached.isdecimal() else 0
    return (step + nodes + int(status.get("readyReplicas") or 0),)
