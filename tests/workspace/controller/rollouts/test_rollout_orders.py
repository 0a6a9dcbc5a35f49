"""Rollouts in thousands of random orders of events: requests always have servers, and every rollout ends."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule

from cache_agent.api.kube_objects import timestamp
from tests.examples import examples
from tests.workspace.controller.simulation import NAME, NAMESPACE
from tests.workspace.controller.test_fixed_point import Controller
from workspace.analysis import AnalysisResult, Judgement, Outcome
from workspace.controller.observation.observed import GATEWAY_GROUP
from workspace.controller.rollouts.rollout_plan import (
    Commands,
    ReplicaSplit,
    RolloutInput,
    advance,
    serving,
    split,
    window_of,
)
from workspace.controller.rollouts.rollout_view import rollout_before
from workspace.probes.verdicts import ProbeOutcome, ProbeResult, ProbeVerdict
from workspace.render import names
from workspace.rollout_spec import Rollout
from workspace.rollout_status import RolloutPhase, RolloutStatus

Json = dict[str, Any]
OLD, NEW = "chat-old", "chat-new"
SPECS: list[Json] = [
    {"strategy": "canary"},
    {"strategy": "canary", "steps": [{"weight": 5}, {"pause": {"seconds": 30}}, {"weight": 80}, {"pause": {}}]},
    {"strategy": "canary", "steps": [{"weight": 1}, {"weight": 99}, {"analysis": {"seconds": 20}}]},
    {"strategy": "blueGreen", "steps": [{"pause": {}}], "keepSeconds": 60},
    {"strategy": "blueGreen", "keepSeconds": 0},
    {"strategy": "canary", "analysis": {"probes": {"attached": True}}},
    {"strategy": "blueGreen", "analysis": {"probes": {"configMap": {"name": "a"}}}},
]  # fmt: skip
CANARIES = [each for each in SPECS if each["strategy"] == "canary"]
ROUTE = {"parentRefs": [{"name": "public"}]}
ORDERS = 10_000


@dataclass
class Server:
    own: bool
    version: str
    ready: bool = False


@dataclass
class Play:
    """Two Deployments with places for `room` servers, whose controllers do one step at a time."""

    dice: random.Random
    spec: Rollout
    goal: int
    room: int
    servers: list[Server] = field(default_factory=list)
    state: RolloutStatus | None = None
    wanted: ReplicaSplit = field(default_factory=lambda: ReplicaSplit(0, 0))
    template: str = OLD
    commands: Commands = field(default_factory=Commands)
    result: AnalysisResult | None = None
    probes: ProbeResult | None = None
    clock: float = 1_800_000_000.0

    def __post_init__(self) -> None:
        self.servers = [Server(own=True, version=OLD, ready=True) for _ in range(self.goal)]
        self.wanted = ReplicaSplit(self.goal, 0)

    def seen(self) -> RolloutInput:
        ready = [each for each in self.servers if each.ready]
        new = [each for each in ready if each.version == NEW]
        waiting = sum(not each.own for each in self.servers) < self.wanted.candidate
        own = [each for each in self.servers if each.own]
        if self.template == NEW:
            waiting |= sum(each.version == NEW for each in own) < self.wanted.own
        return RolloutInput(
            spec=self.spec, stable=OLD, candidate=NEW, goal=self.goal,
            stable_ready=len(ready) - len(new), candidate_ready=len(new),
            own_ready=sum(each.own for each in new), warm=True, now=timestamp(self.clock),
            crowded=waiting and len(self.servers) >= self.room, result=self.result,
            commands=self.commands, probes=self.probes,
        )  # fmt: skip

    def decide(self) -> None:
        seen = self.seen()
        self.state = advance(seen, self.state)
        assert advance(seen, self.state) == self.state, "the same observation decides the same"
        self.wanted = split(self.state, seen)
        self.carry_out(seen, self.state)
        self.check(seen, self.state)

    def carry_out(self, _: RolloutInput, state: RolloutStatus) -> None:
        """What follows beside the numbers of servers."""
        if state.phase is RolloutPhase.PROMOTING:
            self.template = NEW

    def check(self, seen: RolloutInput, state: RolloutStatus) -> None:
        alone = serving(state, seen)
        if alone is not None:
            assert (seen.stable_ready if alone == OLD else seen.candidate_ready) > 0
        if self.spec.analysis.probes and state.is_open and state.step < 2 and seen.stable_ready:
            assert alone == OLD, "requests only after the probes"
        beside = min(seen.candidate_ready - seen.own_ready, self.wanted.candidate)
        if self.goal and state.is_open:
            assert self.wanted.own + beside >= self.goal - state.in_place
            assert self.wanted.own >= 1
        if state.phase is RolloutPhase.PROMOTING and not state.in_place:
            # One that gives way is one that the new version's servers beside it make up for.
            assert self.wanted.own + beside >= self.goal
        if state.is_withdrawn and seen.traffic is None:
            assert self.wanted == ReplicaSplit(self.goal, 0)

    def run_deployments(self) -> None:
        """One step of each Deployment's controller: a surge goes, or a missing server comes where there is room."""
        beside = [each for each in self.servers if not each.own]
        if len(beside) > self.wanted.candidate:
            self.servers.remove(min(beside, key=lambda each: each.ready))
        elif len(beside) < self.wanted.candidate and len(self.servers) < self.room:
            self.servers.append(Server(own=False, version=NEW))
        own = [each for each in self.servers if each.own]
        right = [each for each in own if each.version == self.template]
        wrong = [each for each in own if each.version != self.template]
        count = self.wanted.own
        if len(right) > count:
            self.servers.remove(min(right, key=lambda each: each.ready))
        elif wrong and sum(each.ready for each in own) > count - (not right and len(own) > count):
            self.servers.remove(min(wrong, key=lambda each: each.ready))
        elif (
            len(right) < count and len(own) < count + bool(wrong) and len(self.servers) < self.room
        ):
            self.servers.append(Server(own=True, version=self.template))

    def start_one(self) -> None:
        waiting = [each for each in self.servers if not each.ready]
        if waiting:
            self.dice.choice(waiting).ready = True

    def lose_one(self) -> None:
        if self.servers:
            self.servers.remove(self.dice.choice(self.servers))

    def compare(self, outcome: Outcome) -> None:
        if self.state is not None:
            verdict = Judgement(outcome, "It is worse.")
            self.result = AnalysisResult(window_of(self.state), self.dice.choice([5, 500]), verdict)

    def probe(self, outcome: ProbeOutcome) -> None:
        self.probes = ProbeResult(NEW, OLD, (ProbeVerdict("p", outcome, "It is wrong"),))

    def ask(self, **commands: Any) -> None:
        self.commands = replace(Commands(), **commands)

    def resume(self) -> None:
        if self.state is not None:
            self.ask(resume=self.state.token)

    def more_events(self) -> list[tuple[int, Callable[[], None]]]:
        """Events that a cluster with more parts has, with how often each comes."""
        return []

    def event(self, *, losses: bool) -> None:
        events = [
            *self.more_events(),
            (8, self.decide), (8, self.run_deployments), (6, self.start_one),
            (2, lambda: setattr(self, "clock", self.clock + self.dice.choice([1, 40, 4000]))),
            (2, lambda: self.compare(Outcome.PASSED)), (1, lambda: self.compare(Outcome.INCONCLUSIVE)),
            (1, lambda: self.probe(ProbeOutcome.PASSED)), (1, lambda: self.probe(ProbeOutcome.UNANSWERED)),
            (1, lambda: self.ask(pause=True)), (1, self.ask), (1, self.resume),
            (2 if losses else 0, self.lose_one),
        ]  # fmt: skip
        weights = [weight for weight, _ in events]
        self.dice.choices(events, weights)[0][1]()

    def finish(self) -> None:
        """Everything that a rollout may wait for comes; then it ends."""
        for _ in range(400):
            for _, happens in self.more_events():
                happens()
            if self.commands.pause:
                self.ask()
            self.clock += 10_000
            self.decide()
            if self.state is not None and self.state.phase is RolloutPhase.PAUSED:
                self.resume()
            for _ in range(3):
                self.run_deployments()
                self.start_one()
            settled = len(self.servers) == self.goal and all(each.ready for each in self.servers)
            ended = self.state is not None and not self.state.is_open
            if settled and ended and self.state and self.state.phase is not RolloutPhase.PROMOTING:
                return
            self.compare(Outcome.PASSED)
            self.probe(ProbeOutcome.PASSED)
        raise AssertionError(f"no end: {self.state}, {self.servers}, {self.wanted}")


def play(seed: int) -> Play:
    dice = random.Random(seed)  # noqa: S311 - a test's dice
    goal = dice.randint(1, 6)
    spec = Rollout.model_validate(dice.choice(SPECS))
    return Play(dice, spec, goal, room=dice.choice([goal, goal + 1, 3 * goal]))


def test_every_order_of_events_ends_with_the_new_version() -> None:
    ended = 0
    for seed in range(ORDERS):
        each = play(seed)
        losses = seed % 2 == 0
        for _ in range(each.dice.randint(5, 40)):
            each.event(losses=losses)
        # Servers of a version that doesn't fit beside the old one can't all start at once.
        each.room = max(each.room, 2 * each.goal)
        each.finish()
        assert {server.version for server in each.servers} == {NEW}
        ended += 1
    assert ended == ORDERS


def test_a_canary_ends_even_where_there_is_no_room_beside() -> None:
    for seed in range(500):
        each = play(seed)
        each.goal = max(2, each.goal)
        each.spec = Rollout.model_validate(each.dice.choice(CANARIES))
        each.room = each.goal + each.dice.choice([0, 0, 1, 2])
        each.__post_init__()
        for _ in range(each.dice.randint(0, 40)):
            each.event(losses=False)
            assert sum(server.ready for server in each.servers) >= each.goal - 1
            if each.dice.random() < 0.05:
                each.spec = Rollout.model_validate(each.dice.choice(CANARIES))
                each.result = None
                each.decide()
        each.finish()
        assert {server.version for server in each.servers} == {NEW}


@pytest.mark.parametrize("how", ["abort", "worse"])
def test_going_back_at_any_moment_ends_with_the_old_version(how: str) -> None:
    went_back = 0
    for seed in range(1000):
        each = play(seed)
        for _ in range(each.dice.randint(1, 40)):
            each.event(losses=False)
        if each.state is None or not each.state.is_open:
            continue
        before = sum(server.ready and server.version == OLD for server in each.servers)
        if how == "abort":
            each.ask(abort=NEW)
        else:
            each.ask()
            each.compare(Outcome.FAILED)
        each.decide()
        assert each.state.is_withdrawn
        assert each.state.stable == OLD
        assert before >= 1
        for _ in range(60):
            each.run_deployments()
            each.start_one()
            each.decide()
        assert [server.version for server in each.servers if server.ready] == [OLD] * each.goal
        went_back += 1
    assert went_back > 100


class RolloutController(Controller):
    """The whole controller's machine, with versions that replace each other by all strategies."""

    @initialize(labels=st.booleans(), rollout=st.sampled_from(SPECS), routed=st.booleans())
    def start(self, labels: bool, rollout: Json, routed: bool) -> None:
        super().start(labels)
        self.cluster.change_spec(rollout=rollout, route=ROUTE if routed else None)
        self.cluster.gateway_groups = frozenset({GATEWAY_GROUP})

    @rule(route=st.sampled_from([ROUTE, None]))
    def change_route(self, route: Json | None) -> None:
        self.cluster.change_spec(route=route)

    @rule(installed=st.booleans())
    def gateway_api(self, installed: bool) -> None:
        self.cluster.gateway_groups = frozenset({GATEWAY_GROUP} if installed else ())
        if not installed and ("HTTPRoute", NAMESPACE, NAME) in self.cluster.api.objects:
            self.cluster.api.delete("HTTPRoute", NAMESPACE, NAME)

    def settle(self) -> None:
        """Until nothing changes any more, streams of versions without requests ended as well."""
        self.cluster.settle()
        while (version := self.cluster.decide().draining) is not None:
            self.cluster.idle = version
            self.cluster.settle()

    @rule(rollout=st.sampled_from([*SPECS, {"strategy": "rolling"}]))
    def change_rollout(self, rollout: Json) -> None:
        self.cluster.change_spec(rollout=rollout)

    @rule(seconds=st.sampled_from([1, 60, 5000]))
    def later(self, seconds: int) -> None:
        self.cluster.later(seconds)

    @rule(outcome=st.sampled_from(list(Outcome)), seconds=st.sampled_from([5, 5000]))
    def compare(self, outcome: Outcome, seconds: int) -> None:
        state = self.state()
        if state is not None:
            self.cluster.analysis = AnalysisResult(
                window_of(state), seconds, Judgement(outcome, "Said so.")
            )

    @rule(outcome=st.sampled_from(list(ProbeOutcome)))
    def probe(self, outcome: ProbeOutcome) -> None:
        state = self.state()
        if state is not None:
            verdicts = (ProbeVerdict("p", outcome, "it is so"),)
            self.cluster.probes = ProbeResult(state.version, state.stable, verdicts)

    @rule(command=st.sampled_from(["pause", "resume", "promote", "abort"]))
    def ask(self, command: str) -> None:
        state = self.state()
        if state is not None:
            given = {"pause": "true", "resume": state.token}.get(command, state.version)
            self.cluster.annotate(pause=None, resume=None, promote=None, abort=None)
            self.cluster.annotate(**{command: given})

    @rule()
    def ask_nothing(self) -> None:
        self.cluster.annotate(pause=None, resume=None, promote=None, abort=None)

    def state(self) -> RolloutStatus | None:
        return rollout_before(self.cluster.api.get("Workspace", NAMESPACE, NAME))

    def check_what_was_asked_for(self) -> None:
        """While a rollout goes on or was taken back, the old version serves; else as without one."""
        state = self.state()
        if state is None or not (state.is_open or state.is_withdrawn):
            super().check_what_was_asked_for()
            return
        deployment = self.cluster.api.get("Deployment", NAMESPACE, NAME)
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert state.stable.endswith(labels[names.REVISION])
        if state.is_withdrawn:
            assert ("Deployment", NAMESPACE, names.candidate(NAME)) not in self.cluster.api.objects

    @invariant()
    def others_rules_stay(self) -> None:
        """Of the route's rules those without a backend of ours are never touched."""
        if not hasattr(self, "cluster"):
            return
        for each in self.cluster.api.list("HTTPRoute", NAMESPACE):
            for found in each["spec"]["rules"]:
                backends = {backend["name"] for backend in found["backendRefs"]}
                assert backends in ({"theirs"}, {NAME, names.candidate(NAME)})


TestRollouts = pytest.mark.slow(RolloutController.TestCase)
TestRollouts.settings = settings(max_examples=examples(30), stateful_step_count=40)


def test_time_alone_moves_a_pause_on() -> None:
    each = play(0)
    each.spec = Rollout.model_validate(SPECS[1])
    each.finish()
    assert datetime.fromisoformat(each.seen().now).timestamp() == each.clock
