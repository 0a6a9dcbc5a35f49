"""The conditions of a status, each with a reason and a remedy; the names of a Workspace's five."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from modelimage.errors import WeightyardError

Json = dict[str, Any]

MODEL_RESOLVED, CACHED, SCHEDULED, AVAILABLE, READY = (
    "ModelResolved",
    "Cached",
    "Scheduled",
    "Available",
    "Ready",
)


@dataclass(frozen=True, slots=True)
class StatusCondition:
    """One condition; `ok` None is Unknown."""

    type: str
    ok: bool | None
    reason: str
    message: str

    @property
    def status(self) -> str:
        return "Unknown" if self.ok is None else str(self.ok)


def merge(
    previous: Iterable[Json], current: Iterable[StatusCondition], *, generation: int, now: str
) -> list[Json]:
    """Conditions in the status's form. lastTransitionTime changes only when a condition's status does."""
    before = {each["type"]: each for each in previous}
    merged = []
    for each in current:
        old = before.get(each.type, {})
        since = old.get("lastTransitionTime", now) if old.get("status") == each.status else now
        merged.append(
            {
                "type": each.type,
                "status": each.status,
                "reason": each.reason,
                "message": each.message,
                "observedGeneration": generation,
                "lastTransitionTime": since,
            }
        )
    return merged


def ready(parts: Iterable[StatusCondition], *, done: StatusCondition) -> StatusCondition:
    """The Ready condition: `done`, unless another condition isn't true; then that one's reason."""
    for each in parts:
        if each.ok is not True:
            return StatusCondition(READY, each.ok, each.reason, each.message)
    return done


def failed(kind: str, error: WeightyardError) -> StatusCondition:
    """An error as a condition: the class name is the reason, and the message includes the hint."""
    message = f"{error.message}. {error.hint}" if error.hint else error.message
    return StatusCondition(kind, False, type(error).__name__, message)


def same(one: Json, other: Json) -> bool:
    """Whether two statuses are equal, ignoring the order of conditions: the server keeps its own order."""
    return _by_type(one) == _by_type(other)


def _by_type(status: Json) -> Json:
    found = status.get("conditions") or []
    return {**status, "conditions": {each.get("type"): each for each in found}}
