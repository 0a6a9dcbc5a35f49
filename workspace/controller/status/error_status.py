"""A Workspace's status where it can't be reconciled: its document is invalid, or we failed. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from modelimage.errors import WeightyardError
from workspace.controller import conditions
from workspace.controller.conditions import StatusCondition
from workspace.controller.reasons import Reason

Json = dict[str, Any]

# Characters of an unexpected error in a condition; the log has it whole.
_MOST_SAID: Final = 300


def invalid(document: Json, error: WeightyardError, *, now: str) -> Json:
    """The status of an invalid document: servers keep running, and earlier values stay."""
    kept = {each["type"] for each in conditions.known(document)}
    problem = conditions.failed(conditions.MODEL_RESOLVED, error)
    parts = [problem, conditions.ready([problem], done=problem)]
    parts += [
        StatusCondition(kind, None, Reason.UNRESOLVED, "The Workspace can't be read.")
        for kind in (conditions.CACHED, conditions.SCHEDULED, conditions.AVAILABLE)
        if kind not in kept
    ]
    return _with_conditions(document, parts, now=now)


def unexpected(document: Json, error: Exception, *, now: str) -> Json | None:
    """The status after an error that isn't ours: Ready is False, the rest stays. None if that is the status already."""
    said = f"{type(error).__name__}: {error}"[:_MOST_SAID]
    problem = StatusCondition(
        conditions.READY, False, Reason.INTERNAL_ERROR,
        f"{said}. This is a bug: please report it with the controller's log. Running servers are left unchanged.",
    )  # fmt: skip
    status = _with_conditions(document, [problem], now=now)
    return None if conditions.same(document.get("status") or {}, status) else status


def _with_conditions(document: Json, parts: Sequence[StatusCondition], *, now: str) -> Json:
    """A document's status in which some conditions are new or replaced; all else stays."""
    before, generation = conditions.known(document), int(document["metadata"].get("generation", 1))
    merged = conditions.merge(before, parts, generation=generation, now=now)
    found = {each["type"]: each for each in (*before, *merged)}
    return {
        **(document.get("status") or {}),
        "observedGeneration": generation,
        "conditions": list(found.values()),
    }
