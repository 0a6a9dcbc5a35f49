"""Rollouts behind a route in thousands of random orders: no request goes to a version that can't take it.

Beside servers that start and go: endpoints and Gateways that lag behind, streams that end late, edits of the route by
others, and the Gateway API, which comes and goes.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from cache_agent.api.kube_objects import timestamp
from tests.workspace.controller.rollouts.test_rollout_orders import (
    NEW,
    OLD,
    ORDERS,
    SPECS,
    Play,
    Server,
)
from workspace.analysis import Outcome
from workspace.controller.observation.pod_start import seconds_since
from workspace.controller.rollouts.rollout_plan import RolloutInput, serving
from workspace.controller.rollouts.traffic import (
    SETTLE_SECONDS,
    RoutedTraffic,
    draining,
    holds_stable,
    is_settled,
    new_weight,
)
from workspace.rollout_spec import Rollout
from workspace.rollout_status import RolloutPhase, RolloutStatus

DRAIN_SECONDS = 120


@dataclass
class RoutedPlay(Play):
    """`behind_own` and `behind_new` are the endpoints of both Services as Gateways know them.

    `written` is the route's weight for the new version, and `used` the one by which the Gateway forwards.
    """

    installed: bool = True
    selected: str | None = None
    behind_own: list[Server] = field(default_factory=list)
    behind_new: list[Server] = field(default_factory=list)
    written: int = 0
    used: int = 0
    idle: str = ""
    streams: list[Server] = field(default_factory=list)  # each is one stream, on its server
    stopping: list[Server] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.behind_own = list(self.servers)

    def seen(self) -> RolloutInput:
        if not self.installed:
            return super().seen()
        ready = [each for each in self.servers if each.ready]
        own, new = (self.among(ready, each) for each in (self.behind_own, self.behind_new))
        traffic = RoutedTraffic(
            stable=sum(each.version == OLD for each in own), candidate=len(new),
            own=sum(each.own and each.version == NEW for each in own),
            settled=self.written if self.used == self.written else None,
            asked=self.wanted.candidate, switched=self.template == NEW, idle=self.idle,
            drain_seconds=DRAIN_SECONDS,
        )  # fmt: skip
        return replace(super().seen(), traffic=traffic)

    @staticmethod
    def among(ready: list[Server], known: list[Server]) -> list[Server]:
        return [each for each in ready if any(each is other for other in known)]

    def carry_out(self, seen: RolloutInput, state: RolloutStatus) -> None:
        self.selected = serving(state, seen)
        if seen.traffic is None:
            super().carry_out(seen, state)
            return
        self.written = new_weight(state, seen.traffic)
        if state.phase is RolloutPhase.PROMOTING and not holds_stable(
            state, seen.traffic, seen.now
        ):
            self.template = NEW
        # Written by what is reachable at this moment.
        assert not self.written or seen.traffic.candidate
        if (state.is_open or state.is_withdrawn) and seen.traffic.candidate:
            assert self.written == 100 or seen.traffic.stable
        # What counts as idle has no stream left, and gets none.
        assert not self.idle or self.is_idle(self.idle) or self.used != self.written
        if draining(state, seen.traffic, seen.now) is None or not is_settled(state, seen.traffic):
            self.idle = ""

    def is_idle(self, version: str) -> bool:
        return not any(each.version == version for each in self.streams)

    # What happens beside

    def more_events(self) -> list[tuple[int, Callable[[], None]]]:
        return [
            (4, self.run_endpoints), (4, self.run_gateway), (4, self.ask_for_a_stream), (3, self.end_a_stream),
            (3, self.look), (1, self.meddle), (1, self.come_or_go),
        ]  # fmt: skip

    def run_endpoints(self) -> None:
        ready = [each for each in self.servers if each.ready]
        self.behind_own = [each for each in ready if self.selected in (None, each.version)]
        self.behind_new = [each for each in ready if each.version == NEW]
        self.stopping = []

    def run_deployments(self) -> None:
        """A server that is to go still answers for some seconds: until Gateways know (`workspace.render.drain`)."""
        before = list(self.servers)
        super().run_deployments()
        gone = [each for each in before if not self.among([each], self.servers)]
        for each in gone:
            assert not self.cuts(each), f"a stream was cut: {self.state}"
        self.stopping += [each for each in before if not self.among([each], self.servers)]

    def cuts(self, server: Server) -> bool:
        """Whether a server of a version that was taken back goes with a stream, before its time is over."""
        if not self.installed or self.state is None or not self.state.is_withdrawn or server.own:
            return False
        late = (
            seconds_since(self.state.since, timestamp(self.clock)) >= DRAIN_SECONDS + SETTLE_SECONDS
        )
        return not late and server.ready and bool(self.among([server], self.streams))

    def run_gateway(self) -> None:
        self.used = self.written

    def ask_for_a_stream(self) -> None:
        """A request arrives: as the Gateway forwards now, a ready server takes it."""
        if not self.installed:
            return
        to_new = self.dice.randrange(100) < self.used
        takes = [each for each in (self.behind_new if to_new else self.behind_own) if each.ready]
        takes = self.among([each for each in (*self.servers, *self.stopping) if each.ready], takes)
        if takes:
            self.streams.append(self.dice.choice(takes))
        elif not self.lost and any(each.ready for each in self.servers):
            raise AssertionError(
                f"no server for a request: {self.used}, {self.state}, {self.servers}"
            )

    def end_a_stream(self) -> None:
        if self.streams:
            self.streams.pop(self.dice.randrange(len(self.streams)))

    def look(self) -> None:
        seen = self.seen()
        if self.state is None or seen.traffic is None or not is_settled(self.state, seen.traffic):
            self.idle = ""
            return
        version = draining(self.state, replace(seen.traffic, idle=""), seen.now)
        self.idle = version if version and self.is_idle(version) else ""

    def meddle(self) -> None:
        """Somebody writes weights of his own; the controller is told, and puts it right before a Gateway looks."""
        if self.installed and self.state is not None:
            self.written = self.dice.choice([0, 50, 100])
            self.decide()

    def come_or_go(self) -> None:
        """The Gateway API is removed, or installed again: then the route is made anew."""
        self.installed = not self.installed
        if self.state is not None:
            self.decide()
            self.used = self.written
            self.run_endpoints()

    # Losses

    lost: bool = False

    def lose_one(self) -> None:
        super().lose_one()
        self.lost = True


def play(seed: int) -> RoutedPlay:
    dice = random.Random(seed)  # noqa: S311 - a test's dice
    goal = dice.randint(1, 6)
    spec = Rollout.model_validate(dice.choice(SPECS))
    return RoutedPlay(dice, spec, goal, room=dice.choice([goal, goal + 1, 2 * goal, 3 * goal]))


@pytest.mark.parametrize("orders", [500, pytest.param(ORDERS, marks=pytest.mark.slow)])
def test_every_order_of_events_ends_with_the_new_version(orders: int) -> None:
    for seed in range(orders):
        each = play(seed)
        losses = seed % 2 == 0
        for _ in range(each.dice.randint(5, 60)):
            each.event(losses=losses)
        each.room = max(each.room, 2 * each.goal)
        each.finish()
        assert {server.version for server in each.servers} == {NEW}, seed


@pytest.mark.parametrize("how", ["abort", "worse"])
def test_going_back_at_any_moment_cuts_no_stream_and_ends_with_the_old_version(how: str) -> None:
    went_back = finishing = 0
    for seed in range(500):
        each = play(seed)
        for _ in range(each.dice.randint(1, 60)):
            each.event(losses=False)
        if each.state is None or not each.state.is_open or not each.installed:
            continue
        if how == "abort":
            each.ask(abort=NEW)
        else:
            each.ask()
            each.compare(Outcome.FAILED)
        each.decide()
        assert each.state.is_withdrawn
        finishing += each.wanted.candidate > 0
        for _ in range(100):
            for happens in (
                each.run_deployments,
                each.run_endpoints,
                each.run_gateway,
                each.ask_for_a_stream,
                each.start_one,
                each.end_a_stream,
                each.end_a_stream,
                each.look,
                each.decide,
            ):
                happens()
        assert [server.version for server in each.servers if server.ready] == [OLD] * each.goal
        went_back += 1
    assert went_back > 50
    assert finishing > 20
