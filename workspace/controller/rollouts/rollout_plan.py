"""Decides how far the rollout of a new version has come, and how many servers each version gets. Pure.

The state is `status.rollout` alone. Decided again on the same observation, it is the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from workspace.analysis import AnalysisResult, Outcome
from workspace.controller.observation.pod_start import seconds_since
from workspace.controller.reasons import Reason
from workspace.controller.rollouts.rollout_reports import comparing, measures_report, probes_report
from workspace.controller.rollouts.rollout_steps import Stage, is_probing, refitted, stages
from workspace.controller.rollouts.traffic import (
    RoutedTraffic,
    draining,
    holds_stable,
    is_settled,
)
from workspace.probes.verdicts import ProbeResult
from workspace.rollout_spec import EVEN_WEIGHT, Rollout, Strategy
from workspace.rollout_status import RolloutPhase, RolloutStatus


@dataclass(frozen=True, slots=True)
class Commands:
    """What people asked for by annotations; `promote` and `abort` name a version, `resume` a stop."""

    pause: bool = False
    resume: str = ""
    promote: str = ""
    abort: str = ""


@dataclass(frozen=True, slots=True)
class RolloutInput:
    """What one decision is made from.

    `goal` is the wanted number of replicas. Of the ready servers, `stable_ready` and `candidate_ready` are those of
    each version, and `own_ready` those of the new version that the Workspace's own Deployment has. `warm` tells whether
    the nodes that will get new servers hold the model. With `crowded`, new servers find no room. `problem` tells why
    the new version can't run, `hindrance` what keeps its servers from being ready for now. Servers of the old version
    may make room if `movable`. `now` is RFC 3339. `traffic` is how a route shares requests; None without one.
    `result` and `probes` are what was found about the new version.
    """

    spec: Rollout
    stable: str
    candidate: str
    goal: int
    stable_ready: int
    candidate_ready: int
    own_ready: int
    warm: bool
    now: str
    crowded: bool = False
    problem: str = ""
    hindrance: str = ""
    movable: bool = True
    result: AnalysisResult | None = None
    probes: ProbeResult | None = None
    commands: Commands = Commands()
    traffic: RoutedTraffic | None = None


@dataclass(frozen=True, slots=True)
class ReplicaSplit:
    """The replicas of the Workspace's own Deployment, and of the new version's beside it."""

    own: int
    candidate: int


def advance(seen: RolloutInput, before: RolloutStatus | None) -> RolloutStatus:
    """The next state of the rollout from `seen.stable` to `seen.candidate`."""
    if before is None or (before.version, before.stable) != (seen.candidate, seen.stable):
        before = _begun(seen)
    plan = stages(seen.spec)
    state = _with(refitted(seen.spec, before, seen.now), steps=len(plan), replicas=seen.goal)
    # An edit begins a rollout of its own: nothing moves this one any more.
    if state.phase is RolloutPhase.COMPLETED:
        return state
    if state.is_withdrawn:
        state = _again(seen, state)
    if state.is_open:
        state = _onward(seen, plan, state)
    if state.phase is RolloutPhase.PROMOTING:
        state = _taken_over(seen, state)
    return _with(state, attained=_attained(seen, state))


def split(state: RolloutStatus, seen: RolloutInput) -> ReplicaSplit:
    """How many servers each Deployment gets. Law: where both versions fit, none is missing meanwhile."""
    goal = seen.goal
    if goal == 0 or state.is_withdrawn or state.phase is RolloutPhase.COMPLETED:
        return ReplicaSplit(goal, _finishing(state, seen))
    if state.phase is RolloutPhase.PROMOTING:
        return ReplicaSplit(goal, goal) if _holds(seen, state) else _promoting(seen, state)
    if seen.spec.strategy is Strategy.BLUE_GREEN:
        return ReplicaSplit(goal, goal)
    weight = state.weight
    if state.in_place:
        # One of each at least: a version without a server gets no requests, and can't be judged.
        candidate = _clamp(round(goal * weight / 100), 1, goal - 1)
        # One after the other: an old server goes for each new one that is to come.
        return ReplicaSplit(max(goal - candidate, goal - seen.candidate_ready - 1, 1), candidate)
    # A route gives the new version its share whatever the number of servers: it needs those that carry it.
    needed = (
        math.ceil(goal * weight / 100) if seen.traffic else round(goal * weight / (100 - weight))
    )
    candidate = _clamp(needed, 1, goal)
    if weight <= EVEN_WEIGHT or seen.traffic or not seen.movable:
        return ReplicaSplit(goal, candidate)
    fewer = math.ceil(goal * (100 - weight) / weight)
    return ReplicaSplit(max(fewer, goal - seen.candidate_ready, 1), candidate)


def serving(state: RolloutStatus, seen: RolloutInput) -> str | None:
    """The version that alone is behind the Workspace's Service; None if all ready servers are.

    They are too when the one meant has none. With a route the new version's servers are behind a Service of their own.
    """
    if seen.traffic is not None:
        alone = state.is_open or state.is_withdrawn or _holds(seen, state)
        return state.stable if alone and seen.stable_ready else None
    # Never a version alone that has no ready server: the Service would lead nowhere.
    before = state.stable if seen.stable_ready else None
    if state.is_withdrawn or (state.is_open and state.weight == 0):
        return before
    if seen.spec.strategy is not Strategy.BLUE_GREEN or state.phase is RolloutPhase.COMPLETED:
        return None
    if state.phase is RolloutPhase.PROMOTING or state.weight == 100:
        return state.version if seen.candidate_ready >= max(1, seen.goal) else None
    return before


def wakes_at(spec: Rollout, state: RolloutStatus, now: str) -> float | None:
    """Seconds until time alone ends the present step; None if it doesn't."""
    if not state.is_open or state.step >= len(plan := stages(spec)):
        return None
    stage = plan[state.step]
    if stage.kind not in ("pause", "keep") or stage.seconds is None:
        return None
    return max(0.0, stage.seconds - seconds_since(state.since, now))


def window_of(state: RolloutStatus) -> str:
    """Names the time over which servers are compared: counts under another weight tell of another load."""
    return f"{state.version}/{state.weight}"


def _begun(seen: RolloutInput) -> RolloutStatus:
    first = next(iter(stages(seen.spec)), None)
    return RolloutStatus(
        phase=RolloutPhase.PROGRESSING, version=seen.candidate, stable=seen.stable, since=seen.now,
        weight=first.weight if first else 0,
    )  # fmt: skip


def _again(seen: RolloutInput, state: RolloutStatus) -> RolloutStatus:
    """A version that was taken back is tried again when asked for, never by itself."""
    if seen.commands.promote == state.version and seen.commands.abort != state.version:
        return _promoted(state, seen.now)
    if seen.commands.resume == state.token:
        return _begun(seen)
    return state


def _onward(seen: RolloutInput, plan: tuple[Stage, ...], state: RolloutStatus) -> RolloutStatus:
    result = seen.result if seen.result and seen.result.window == window_of(state) else None
    state = _with_probes(seen, state)
    ended = _ended(seen, state, result)
    if ended is not None:
        return ended
    if seen.goal == 0:
        text = "No replicas are requested, so it waits."
        return _said(state, RolloutPhase.PAUSED, Reason.NOT_NEEDED, text)
    if seen.commands.pause:
        return _said(state, RolloutPhase.PAUSED, Reason.PAUSED, "The rollout was paused by hand.")
    if seen.crowded and _can_make_room(seen):
        state = _with(state, in_place=True)
    while state.step < len(plan):
        stage = plan[state.step]
        if stage.kind == "probes":
            state = _with_probes(seen, state)
            ended = _ended(seen, state, result)
            if ended is not None:
                return ended
        if not _is_finished(stage, seen, state, result):
            return _said(state, *_waiting(stage, seen, state, result))
        if result is not None:
            state = _with(state, measures=measures_report(result.verdict))
        following = plan[state.step + 1].weight if state.step + 1 < len(plan) else state.weight
        # What was counted under another weight tells of another load.
        result = result if following == state.weight else None
        state = _with(state, step=state.step + 1, since=seen.now, weight=following)
    return _promoted(state, seen.now)


def _ended(
    seen: RolloutInput, state: RolloutStatus, result: AnalysisResult | None
) -> RolloutStatus | None:
    """The state if people or the new version's own faults end its steps."""
    if seen.commands.abort == state.version:
        text = "The rollout was aborted by hand."
        return _withdrawn(state, seen, RolloutPhase.ABORTED, Reason.ABORTED, text)
    if seen.commands.promote == state.version:
        return _promoted(state, seen.now)
    if seen.problem:
        return _withdrawn(state, seen, RolloutPhase.FAILED, Reason.NEW_VERSION_FAILED, seen.problem)
    probes = _probes_of(seen, state)
    most = seen.spec.analysis.max_regression.probes
    if probes is not None and probes.outcome(most) is Outcome.FAILED:
        return _withdrawn(state, seen, RolloutPhase.FAILED, Reason.REGRESSED, probes.text)
    if result is not None and result.verdict.outcome is Outcome.FAILED:
        state = _with(state, measures=measures_report(result.verdict))
        return _withdrawn(state, seen, RolloutPhase.FAILED, Reason.REGRESSED, result.verdict.text)
    return None


def _is_finished(
    stage: Stage, seen: RolloutInput, state: RolloutStatus, result: AnalysisResult | None
) -> bool:
    if stage.kind == "weight":
        are_ready = seen.warm and seen.candidate_ready >= split(state, seen).candidate
        return are_ready and (seen.traffic is None or is_settled(state, seen.traffic))
    # Behind the weights: no word of anybody makes servers ready that aren't.
    if seen.commands.resume == state.token:
        return True
    if stage.kind == "probes":
        probes = _probes_of(seen, state)
        most = seen.spec.analysis.max_regression.probes
        return probes is not None and probes.outcome(most) is Outcome.PASSED
    if stage.kind == "analysis":
        return (
            result is not None
            and result.verdict.outcome is Outcome.PASSED
            and stage.seconds is not None
            and result.seconds >= stage.seconds
        )
    return stage.seconds is not None and seconds_since(state.since, seen.now) >= stage.seconds


def _waiting(
    stage: Stage, seen: RolloutInput, state: RolloutStatus, result: AnalysisResult | None
) -> tuple[RolloutPhase, Reason, str]:
    """What is waited for, in words that change only when that does: each change is written."""
    if stage.kind == "weight":
        return (RolloutPhase.PROGRESSING, *_starting(seen, state))
    if stage.kind == "pause":
        until = f"for {stage.seconds} s" if stage.seconds else "until it is resumed or promoted"
        return RolloutPhase.PAUSED, Reason.PAUSED, f"It pauses {until}."
    if stage.kind == "probes":
        return _probing(_probes_of(seen, state))
    if stage.kind == "keep":
        text = f"All requests go to the new version; the old one stays ready for {stage.seconds} s."
        return RolloutPhase.PROGRESSING, Reason.ROLLING_OUT, text
    return comparing(stage, result)


def _probing(probes: ProbeResult | None) -> tuple[RolloutPhase, Reason, str]:
    if probes is None:
        text = "The new version is asked probes before it gets requests."
        return RolloutPhase.PROGRESSING, Reason.PROBING, text
    return (
        RolloutPhase.PAUSED, Reason.INCONCLUSIVE,
        f"The probes say nothing yet. {probes.text} They are asked again by themselves; resume goes on without them.",
    )  # fmt: skip


def _starting(seen: RolloutInput, state: RolloutStatus) -> tuple[Reason, str]:
    if not seen.warm:
        return Reason.FETCHING, "Nodes are fetching the new version's model."
    if seen.crowded and not (state.in_place and seen.goal > 1):
        return Reason.NO_ROOM, (
            "There is no room for servers of the new version beside those that serve. Add a node, or abort it. "
            f"{seen.hindrance}"
        )
    if seen.traffic is not None and seen.candidate_ready >= split(state, seen).candidate:
        return Reason.ROUTE_PENDING, "The Gateways haven't taken over the new weights yet."
    return Reason.STARTING, f"Servers of the new version are starting. {seen.hindrance}".rstrip()


def _taken_over(seen: RolloutInput, state: RolloutStatus) -> RolloutStatus:
    """Promoting ends when the Workspace's own servers all are of the new version."""
    reachable = seen.own_ready if seen.traffic is None else min(seen.own_ready, seen.traffic.own)
    if seen.stable_ready == 0 and reachable >= seen.goal:
        return _said(
            _with(state, since=seen.now, weight=100),
            RolloutPhase.COMPLETED,
            Reason.READY,
            "The new version serves alone.",
        )
    if seen.crowded and _can_make_room(seen) and _ready(seen) <= seen.goal:
        state = _with(state, in_place=True)
    text = "The new version takes over: the old version's servers are replaced."
    if _holds(seen, state):
        text = "The new version gets all requests; the old version's servers finish theirs."
    return _said(state, RolloutPhase.PROMOTING, Reason.PROMOTING, text)


def _promoting(seen: RolloutInput, state: RolloutStatus) -> ReplicaSplit:
    if not state.in_place:
        # The new version's extra servers stay until the Workspace's own have taken over. If they suffice for all
        # requests, one of the old servers goes first: there may be room for both versions, and for no server more.
        beside = min(seen.goal, seen.candidate_ready - seen.own_ready)
        if seen.crowded and seen.spec.strategy is Strategy.CANARY:
            # Those that aren't needed make room for servers that replace old ones.
            beside = min(beside, max(0, seen.goal - seen.stable_ready - seen.own_ready))
        gives_way = seen.movable and seen.stable_ready > 0 and beside == seen.goal
        return ReplicaSplit(seen.goal - gives_way, beside)
    # Without room one place stays free, in which the Workspace's own servers are replaced one by one.
    running = seen.stable_ready + seen.own_ready
    extra = max(0, seen.goal - 1 - running)
    if seen.stable_ready:
        return ReplicaSplit(_clamp(running, 1, max(1, seen.goal - 1)), extra)
    return ReplicaSplit(min(seen.goal, running + 1), extra)


def _finishing(state: RolloutStatus, seen: RolloutInput) -> int:
    """The servers of a version that was taken back which still have requests."""
    if seen.traffic is None or draining(state, seen.traffic, seen.now) != state.version:
        return 0
    return seen.traffic.asked


def _holds(seen: RolloutInput, state: RolloutStatus) -> bool:
    return seen.traffic is not None and holds_stable(state, seen.traffic, seen.now)


def _ready(seen: RolloutInput) -> int:
    return seen.stable_ready + seen.candidate_ready


def _can_make_room(seen: RolloutInput) -> bool:
    return seen.movable and seen.goal > 1 and seen.spec.strategy is Strategy.CANARY


def _promoted(state: RolloutStatus, now: str) -> RolloutStatus:
    return _with(state, phase=RolloutPhase.PROMOTING, since=now)


def _withdrawn(
    state: RolloutStatus, seen: RolloutInput, phase: RolloutPhase, reason: Reason, text: str
) -> RolloutStatus:
    said = (
        f"{text} The previous version gets all requests again. This version isn't tried again by itself: change the "
        "spec, or resume the rollout."
    )
    return _said(_with(state, since=seen.now, weight=0), phase, reason, said)


def _attained(seen: RolloutInput, state: RolloutStatus) -> int:
    """The new version's percent of the requests: by the route, or else by its share of the servers that get any."""
    if seen.traffic is not None:
        if state.phase is RolloutPhase.COMPLETED:
            return 100
        # Until all Gateways have taken new weights over, the last that all had taken still holds.
        return state.attained if seen.traffic.settled is None else seen.traffic.settled
    alone = serving(state, seen)
    if alone is not None:
        return 100 if alone == state.version else 0
    ready = _ready(seen)
    return round(100 * seen.candidate_ready / ready) if ready else 0


def _probes_of(seen: RolloutInput, state: RolloutStatus) -> ProbeResult | None:
    """What probes say, while they are asked: of these very versions."""
    found = seen.probes
    known = found is not None and (found.version, found.stable) == (state.version, state.stable)
    return found if known and is_probing(seen.spec, state) else None


def _with_probes(seen: RolloutInput, state: RolloutStatus) -> RolloutStatus:
    found = _probes_of(seen, state)
    return _with(state, probes=probes_report(found)) if found and found.verdicts else state


def _said(state: RolloutStatus, phase: RolloutPhase, reason: Reason, text: str) -> RolloutStatus:
    return _with(state, phase=phase, reason=reason.value, message=text)


def _with(state: RolloutStatus, **changes: object) -> RolloutStatus:
    return state.model_copy(update=changes)


def _clamp(value: int, least: int, most: int) -> int:
    return max(least, min(most, value))
