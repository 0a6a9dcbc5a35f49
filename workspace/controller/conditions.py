"""The conditions of a status, each with a reason and a remedy; the names of a Workspace's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from modelimage.errors import WeightyardError
from workspace.controller.reasons import Reason, reason_of, reported_reason
from workspace.rollout_status import RolloutStatus

Json = dict[str, Any]

MODEL_RESOLVED, CACHED, SCHEDULED, AVAILABLE, ROUTED, READY = (
    "ModelResolved",
    "Cached",
    "Scheduled",
    "Available",
    "Routed",
    "Ready",
)
# Reasons that go away by themselves.
IN_PROGRESS: Final = frozenset(
    {
        Reason.RESOLVING,
        Reason.BUILDING,
        Reason.UNRESOLVED,
        Reason.FETCHING,
        Reason.WAITING_FOR_CACHE,
        Reason.STARTING,
        Reason.ROUTE_PENDING,
    }
)
# Characters of a message that the schemas allow: a longer one would keep the whole status from being written.
_MOST_MESSAGE: Final = 32_768
# Characters of others' words in a message: what matters of a long log or error stands at one of its ends.
_QUOTED: Final = 400


@dataclass(frozen=True, slots=True)
class StatusCondition:
    """One condition; `ok` None is Unknown."""

    type: str
    ok: bool | None
    reason: Reason
    message: str

    @property
    def status(self) -> str:
        return "Unknown" if self.ok is None else str(self.ok)


def known(document: Json) -> Sequence[Json]:
    """The conditions that a document's status has."""
    return (document.get("status") or {}).get("conditions") or ()


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
                "reason": each.reason.value,
                "message": sentence(each.message)[:_MOST_MESSAGE],
                "observedGeneration": generation,
                "lastTransitionTime": since,
            }
        )
    return merged


def ready(parts: Iterable[StatusCondition], *, done: StatusCondition) -> StatusCondition:
    """The Ready condition: `done`, unless another condition isn't true; then that one's reason.

    A problem is told before what only takes time: a crashing server is told while the next version is fetched.
    """
    unfinished = [each for each in parts if each.ok is not True]
    if not unfinished:
        return done
    found = next((each for each in unfinished if each.reason not in IN_PROGRESS), unfinished[0])
    return StatusCondition(READY, found.ok, found.reason, found.message)


def rolling(rollout: RolloutStatus | None) -> StatusCondition | None:
    """The Ready condition while a new version runs beside the one that serves, or after it was taken back."""
    if rollout is None or not (rollout.is_open or rollout.is_withdrawn):
        return None
    step = f"Step {rollout.step + 1} of {rollout.steps}: " if rollout.is_open else ""
    text = f"{step}{rollout.message}"
    return StatusCondition(READY, False, reported_reason(rollout.reason), text)


def failed(kind: str, error: WeightyardError) -> StatusCondition:
    """An error as a condition; the message includes the hint."""
    message = f"{sentence(error.message)} {error.hint or ''}"
    return StatusCondition(kind, False, reason_of(error), message)


def sentence(text: str) -> str:
    """The text as whole sentences: in one line, with a capital letter and a full stop."""
    flat = " ".join(text.split()).rstrip(".")
    first = flat.partition(" ")[0]
    # Names and paths, such as chat-7f or spec.model, are written as they are.
    if first.isalpha() and first.islower():
        flat = flat[0].upper() + flat[1:]
    return flat if flat.endswith(("?", "!")) else f"{flat}."


def quoted(text: str, *, last: bool = False) -> str:
    """Others' words as a part of a sentence: in one line, without its stop, and only the first or last part of many."""
    flat = " ".join(text.split()).rstrip(".:;, ")
    if len(flat) <= _QUOTED:
        return flat
    return f"… {flat[-_QUOTED:]}" if last else f"{flat[:_QUOTED]} …"


def same(one: Json, other: Json) -> bool:
    """Whether two statuses are equal, ignoring the order of conditions: the server keeps its own order."""
    return _by_type(one) == _by_type(other)


def _by_type(status: Json) -> Json:
    found = status.get("conditions") or []
    return {**status, "conditions": {each.get("type"): each for each in found}}
