"""A rollout's steps, from its spec alone. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from workspace.rollout_spec import Rollout, Strategy
from workspace.rollout_status import RolloutStatus

StageKind = Literal["weight", "probes", "pause", "analysis", "keep"]


@dataclass(frozen=True, slots=True)
class Stage:
    """One step with the weight that holds during it; `seconds` None is until resumed."""

    kind: StageKind
    weight: int
    seconds: int | None = 0


def stages(spec: Rollout) -> tuple[Stage, ...]:
    """The steps of a strategy in one form. blueGreen's first brings all servers up, its last keeps the old ones.

    Probes are asked of servers that get no requests yet: of one of a canary, of all of blueGreen.
    """
    found, weight = [], 0
    probed = spec.analysis.probes is not None and spec.strategy.has_steps
    # Probes and blueGreen's move of all requests need servers that are ready: a weight of 0 waits for them.
    if spec.strategy is Strategy.BLUE_GREEN or probed:
        found.append(Stage("weight", 0))
    if probed:
        found.append(Stage("probes", 0, None))
    for each in spec.given_steps:
        if each.weight is not None:
            weight = each.weight
            found.append(Stage("weight", weight))
        elif each.pause is not None:
            found.append(Stage("pause", weight, each.pause.seconds))
        elif each.analysis is not None:
            found.append(Stage("analysis", weight, each.analysis.seconds))
    if spec.strategy is Strategy.BLUE_GREEN:
        found.append(Stage("keep", 100, spec.keep_seconds))
    return tuple(found)


def refitted(spec: Rollout, state: RolloutStatus, now: str) -> RolloutStatus:
    """The state under steps, or a strategy, that may have been edited since.

    Where the present step has another weight now, it goes back to where servers for that weight are waited for.
    """
    plan = stages(spec)
    step = min(state.step, len(plan))
    here = min(step, len(plan) - 1)
    if not state.is_open or plan[here].weight == state.weight:
        return state.model_copy(update={"step": step})
    back = max(number for number in range(here + 1) if plan[number].kind == "weight")
    return state.model_copy(update={"step": back, "weight": plan[back].weight, "since": now})


def is_reaching_weight(spec: Rollout, state: RolloutStatus) -> bool:
    """Whether the servers for the present weight are still being started."""
    plan = stages(spec)
    return state.step < len(plan) and plan[state.step].kind == "weight"


def is_probing(spec: Rollout, state: RolloutStatus) -> bool:
    """Whether the new version is at the step at which probes are asked."""
    plan = stages(spec)
    return state.is_open and state.step < len(plan) and plan[state.step].kind == "probes"
