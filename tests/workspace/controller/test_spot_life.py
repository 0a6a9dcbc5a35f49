"""Spot nodes that come and go, in virtual time: what is wanted serves, and nothing swings.

The provisioner plays Karpenter (karpenter.py), the decisions are the controller's own.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import examples
from tests.workspace.controller.karpenter import Delays, ElasticCluster, Market
from workspace.controller.observation.objects import node_of

Json = dict[str, Any]
HOUR = 3600
MOST = 4  # replicas
COURSES = 25


class Life:
    """A Workspace on such nodes, and the laws that hold at every moment of it.

    `wanted` are what the scaler asked for, and when. A replacement takes `window` seconds at most: what was interrupted
    within it may be missing, and what was asked for within it may not be there yet.
    """

    def __init__(self, *, floor: int, wanted: int, delays: Delays, **spec: Any) -> None:
        self.floor = floor
        self.market = Market()
        self.cluster = ElasticCluster(delays, self.market, self.check)
        self.wanted = [(0.0, wanted)]
        self.cluster.wanted = wanted
        # A claim may find its zone without capacity when it is launched, once in each, and is made anew.
        self.window = delays.replacement + len(self.market.zones) * (delays.launch + 60)
        self.missing: list[tuple[float, int]] = []
        capacity = {"capacity": {"onDemandMinimum": floor}}
        self.cluster.create_workspace(
            resources={"gpu": "L4", "provisioning": {"by": "karpenter", **capacity}},
            scale={"min": 1, "max": MOST}, **spec,
        )  # fmt: skip

    def want(self, count: int) -> None:
        self.wanted.append((self.cluster.clock, count))
        self.cluster.wanted = count

    def due(self) -> int:
        """The servers that were wanted throughout the window."""
        start = self.cluster.clock - self.window
        if start < 0:
            return 0
        before = [count for at, count in self.wanted if at <= start][-1]
        return min([before, *(count for at, count in self.wanted if at > start)])

    def check(self) -> None:
        """Law: all servers that are due are ready, less those that an interruption took within the window.

        And of them at least the floor isn't on spot capacity, which no interruption takes.
        """
        cluster = self.cluster
        start = cluster.clock - self.window
        taken = sum(count for at, count in cluster.ledger.interrupted if at > start)
        ready = len(cluster.ready_servers())
        assert ready >= self.due() - taken, (cluster.clock, ready, self.due(), taken)
        assert cluster.off_spot() >= min(self.floor, self.due()), (cluster.clock, cluster.claims)

    def check_rest(self, last: float) -> None:
        """Law: some time after the last event nothing changes any more, and no node more than is needed stays."""
        cluster, count = self.cluster, self.wanted[-1][1]
        still = cluster.clock - HOUR
        assert len(cluster.ready_servers()) == len(cluster.servers()) == count
        assert sorted(cluster.claims) == sorted(str(node_of(pod)) for pod in cluster.servers())
        assert [each for each in cluster.ledger.claims if each.launched_at > still] == []
        assert [each for each in cluster.ledger.resized if each[0] > still] == []
        # After the last event: what was missing, what goes back to spot, and a surge for each.
        launched = [each for each in cluster.ledger.claims if each.launched_at >= last]
        assert len(launched) <= 3 * MOST
        assert len([each for each in cluster.ledger.resized if each[0] >= last]) <= 6 * MOST
        if self.market.spot:
            assert len(cluster.nodes_of("spot")) == count - min(self.floor, count)


EVENTS = st.one_of(
    st.tuples(st.just("interrupt"), st.integers(0, 9)),
    st.tuples(st.just("interrupt all"), st.just(0)),
    st.tuples(
        st.sampled_from(["short", "short everywhere", "back", "back everywhere"]), st.integers(0, 2)
    ),
    st.tuples(st.sampled_from(["drift", "expire"]), st.integers(0, 9)),
    st.tuples(st.just("want"), st.integers(1, MOST)),
    st.tuples(st.sampled_from(["nothing", "restart"]), st.just(0)),
)
KINDS = (
    "interrupt", "interrupt", "interrupt all", "short", "short everywhere", "back", "back everywhere", "drift",
    "expire", "want", "restart",
)  # fmt: skip
GAPS = st.sampled_from([0, 20, 60, 150, 400, 900, 2400])


def live(life: Life, course: list[tuple[int, tuple[str, int]]]) -> float:
    """Lets events happen, each so many seconds after the one before; returns the time of the last."""
    cluster = life.cluster
    cluster.run_until(life.window + 1)
    for gap, (what, number) in course:
        cluster.run_until(cluster.clock + gap)
        spot = [name for name in cluster.nodes_of("spot") if name in cluster.held]
        zone = life.market.zones[number % 3]
        if what == "interrupt" and spot:
            cluster.interrupt(spot[number % len(spot)])
        elif what == "interrupt all":
            for name in spot:
                cluster.interrupt(name)
        elif what == "short":
            life.market.spot.discard(zone)
        elif what == "short everywhere":
            life.market.spot.clear()
        elif what == "back":
            life.market.spot.add(zone)
        elif what == "back everywhere":
            life.market.spot.update(life.market.zones)
        elif what == "drift" and cluster.held:
            cluster.replace(sorted(cluster.held)[number % len(cluster.held)])
        elif what == "expire" and cluster.held:
            cluster.expire(sorted(cluster.held)[number % len(cluster.held)])
        elif what == "restart":
            cluster.restart()
        elif what == "want":
            life.want(number)
        cluster.after(0, cluster.look)
    return cluster.clock


@given(
    floor=st.integers(0, 3),
    wanted=st.integers(1, MOST),
    course=st.lists(st.tuples(GAPS, EVENTS), max_size=8),
)
@settings(max_examples=examples(8), deadline=None)
def test_what_is_wanted_serves_whatever_the_cloud_takes_back(
    floor: int, wanted: int, course: list[tuple[int, tuple[str, int]]]
) -> None:
    check_life(floor, wanted, course, Delays())


def test_the_floor_stays_while_nodes_of_both_kinds_expire() -> None:
    """A new server on spot is no replacement of one that never runs there."""
    life = Life(floor=2, wanted=4, delays=Delays())
    cluster = life.cluster
    cluster.run_until(life.window + 1)
    for kind in ("spot", "on-demand"):  # whose replacement is ready 20 s later
        cluster.expire(cluster.nodes_of(kind)[0])
        cluster.run_until(cluster.clock + 20)
    cluster.run_until(cluster.clock + HOUR)
    assert len(cluster.nodes_of("on-demand")) == 2
    assert cluster.ledger.lost == []


def test_a_node_stays_whose_replacement_goes_before_it_was_initialised() -> None:
    delays = Delays()
    cluster = Life(floor=0, wanted=1, delays=delays).cluster
    cluster.run_until(HOUR)
    (old,) = cluster.claims
    cluster.replace(old)
    (new,) = cluster.claims.keys() - {old}
    cluster.run_until(cluster.clock + delays.launch + 1)
    assert new in cluster.held
    assert cluster.is_going(cluster.api.get("Node", "", old))
    cluster.expire(new)
    cluster.run_until(cluster.clock + 60)
    assert not cluster.is_going(cluster.api.get("Node", "", old))


def check_life(
    floor: int, wanted: int, course: list[tuple[int, tuple[str, int]]], delays: Delays
) -> Life:
    life = Life(floor=floor, wanted=wanted, delays=delays)
    last = live(life, course)
    life.cluster.run_until(last + 4 * HOUR)
    life.check_rest(last)
    # The notice suffices for the longest request, so no interruption costs one that the controller can know of.
    assert life.cluster.ledger.lost == []
    return life


def test_a_spot_node_that_expires_keeps_its_servers_until_others_are_ready() -> None:
    """All nodes at once: Karpenter makes no replacements first, so that the controller has to."""
    life = Life(floor=0, wanted=3, delays=Delays())
    cluster = life.cluster
    cluster.run_until(life.window + 1)
    before = sorted(cluster.held)
    for name in before:
        cluster.expire(name)
    cluster.run_until(cluster.clock + 20)
    cluster.restart()
    cluster.run_until(cluster.clock + HOUR)
    assert not set(before) & set(cluster.held)
    assert len(cluster.ready_servers()) == 3
    assert cluster.ledger.interrupted == []


@pytest.mark.slow
@pytest.mark.parametrize("part", range(3))
def test_many_lives(part: int) -> None:
    """`python -m benchmarks.spot --courses 1000` goes on from these."""
    check_courses(part)


def check_courses(part: int) -> None:
    """Plays `COURSES` random courses of events, the same ones for a part."""
    chosen = random.Random(part)  # noqa: S311 - courses of a simulation
    for _ in range(COURSES):
        course = [
            (chosen.choice([0, 20, 60, 150, 400, 900, 2400]), (chosen.choice(KINDS), chosen.randint(1, MOST)))
            for _ in range(chosen.randint(1, 8))
        ]  # fmt: skip
        delays = Delays(
            launch=chosen.randint(20, 120),
            fetch=chosen.randint(5, 300),
            load=chosen.randint(20, 300),
        )
        check_life(chosen.randint(0, 3), chosen.randint(1, MOST), course, delays)
