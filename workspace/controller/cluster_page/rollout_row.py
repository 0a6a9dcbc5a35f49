"""What the page shows of a rollout: its steps, its share of requests, the comparison, and the way on or back. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError

from cache_agent.api.page.view import Row
from workspace.controller.observation.revisions import version_id
from workspace.controller.rollouts.rollout_steps import Stage, stages
from workspace.controller.rollouts.rollout_view import rollout_before
from workspace.field_types import STORED
from workspace.rollout_spec import Rollout
from workspace.rollout_status import RolloutPhase, RolloutStatus

Json = dict[str, Any]

_ON: Final = {
    RolloutPhase.PROGRESSING: ("pause", "promote", "abort"),
    RolloutPhase.PAUSED: ("resume", "promote", "abort"),
    RolloutPhase.PROMOTING: ("undo",),
    RolloutPhase.COMPLETED: ("undo",),
    RolloutPhase.FAILED: ("resume",),
    RolloutPhase.ABORTED: ("resume",),
}
_DOES: Final = {
    "pause": "holds it at this step",
    "resume": "goes on",
    "promote": "skips the steps that are left",
    "abort": "takes the new version back",
    "undo": "returns to the version before",
}
_TRIES_AGAIN: Final = "tries the same version again"
_TAKES_OVER: Final = "Take over: replace the servers of the version before"


def rollout_row(document: Json, numbers: Mapping[str, int]) -> Row | None:
    """The row of `status.rollout`; None where no version was rolled out by steps. `numbers`: of versions, by id."""
    state = rollout_before(document)
    if state is None:
        return None
    spec = _spec(document)
    row: Row = {
        "strategy": spec.strategy.value if spec else None,
        "phase": state.phase.value,
        "open": state.is_open or state.phase is RolloutPhase.PROMOTING,
        "bad": state.is_withdrawn,
        "version": _version(state.version, numbers),
        "stable": _version(state.stable, numbers),
        "step": min(state.step + 1, state.steps) if state.is_open else None,
        "steps": state.steps if state.is_open else None,
        "weight": state.weight if state.is_open else None,
        "attained": state.attained if state.is_open else None,
        "inPlace": state.in_place and state.is_open,
        "since": state.since,
        "reason": state.reason,
        "why": state.message,
        "stages": _stages(spec, state),
        "measures": [each.to_document() for each in state.measures],
        "commands": _commands(document["metadata"], state),
    }
    # Not `in`: 0 equals False.
    return {
        name: value
        for name, value in row.items()
        if value is not None and value is not False and value not in ("", [])
    }


def _spec(document: Json) -> Rollout | None:
    """How versions are rolled out; None where the spec can't be read: its state still can."""
    found = (document.get("spec") or {}).get("rollout") or {}
    try:
        return Rollout.model_validate(found, context=STORED)
    except ValidationError:
        return None


def _version(name: str, numbers: Mapping[str, int]) -> int | str:
    """A version's number; its id once its ControllerRevision is gone."""
    return numbers.get(version_id(name)) or version_id(name)


def _stages(spec: Rollout | None, state: RolloutStatus) -> list[Row]:
    """The steps as they are known now; those of an edited spec may be fewer than were made."""
    titles = [*(_title(each) for each in stages(spec)), _TAKES_OVER] if spec else []
    over = state.phase in (RolloutPhase.PROMOTING, RolloutPhase.COMPLETED)
    here = len(titles) - 1 if over else min(state.step, len(titles) - 1)
    now = "failed" if state.is_withdrawn else "now"
    # There is no title behind the last one, so what is completed shows there.
    if state.phase is RolloutPhase.COMPLETED:
        now = "done"
    return [
        {"title": title, "state": "done" if place < here else now if place == here else "later"}
        for place, title in enumerate(titles)
    ]


def _title(stage: Stage) -> str:
    if stage.kind == "weight" and not stage.weight:
        return "Start its servers, without requests"
    if stage.kind == "probes":
        return "Ask it probes"
    if stage.kind == "weight":
        return f"Give it {stage.weight} % of the requests"
    if stage.seconds is None:
        return "Pause until it is resumed"
    return {
        "pause": f"Pause for {_long(stage.seconds)}",
        "analysis": f"Compare both versions for {_long(stage.seconds)}",
        "keep": f"Give it all requests, and keep the version before for {_long(stage.seconds)}",
    }[stage.kind]


def _long(seconds: int) -> str:
    for name, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds and seconds % size == 0:
            return f"{seconds // size} {name}"
    return f"{seconds} s"


def _commands(metadata: Json, state: RolloutStatus) -> list[Row]:
    """What people can do about it now."""
    where = f"{metadata['name']} -n {metadata.get('namespace', 'default')}"
    return [
        {
            "command": f"weightyard rollout {each} {where}",
            "does": _TRIES_AGAIN if state.is_withdrawn else _DOES[each],
        }
        for each in _ON[state.phase]
    ]
