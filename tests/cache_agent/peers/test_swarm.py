"""Whole clusters in virtual time: one copy from upstream, the time of one node, and progress whatever peers do."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_agent.peers.reputation import HALF_LIFE_SECONDS, Offence, Reputation
from tests.cache_agent.peers.simulation import (
    UPSTREAM_SECONDS,
    Cluster,
    DeadPeer,
    IdlePeer,
    LyingPeer,
    Node,
    RefusingPeer,
    StallingPeer,
)
from tests.examples import examples

CHUNKS = 16
FAULTS = [LyingPeer, StallingPeer, IdlePeer, DeadPeer, RefusingPeer]


@pytest.mark.parametrize("count", [1, 2, 6])
def test_cold_nodes_take_one_copy_and_no_longer_than_one(count: int) -> None:
    """Here each node has a line of its own upstream, so N nodes are faster than one."""
    alone = Cluster(CHUNKS)
    one = alone.pull([alone.add()])
    cluster = Cluster(CHUNKS)
    seconds = cluster.pull([cluster.add() for _ in range(count)])
    assert cluster.copies == 1.0
    assert seconds <= 1.1 * one


@given(st.integers(2, 6), st.floats(0, 3.0), st.integers(1, 16))
@settings(max_examples=examples(15))
def test_nodes_that_begin_one_after_the_other_take_one_copy(
    count: int, apart: float, chunks: int
) -> None:
    cluster = Cluster(chunks)
    cluster.pull([cluster.add() for _ in range(count)], apart=apart)
    assert cluster.copies == 1.0


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_one_bad_peer_delays_and_doesnt_stop(fault: type[Node]) -> None:
    cluster = Cluster(CHUNKS)
    good = [cluster.add() for _ in range(3)]
    cluster.add(fault)
    seconds = cluster.pull(good)
    assert cluster.copies <= 1.1
    assert seconds <= CHUNKS * UPSTREAM_SECONDS / 4 + 30


@given(
    st.lists(st.sampled_from([Node, *FAULTS]), max_size=6),
    st.integers(1, 12),
    st.booleans(),
    st.randoms(use_true_random=False),
)
@settings(max_examples=examples(20))
def test_progress_whenever_upstream_answers(
    kinds: list[type[Node]], chunks: int, apart: bool, random: object
) -> None:
    cluster = Cluster(chunks, apart=apart)
    good = [cluster.add(zone=zone) for zone in ("a", "b")]
    for kind in kinds:
        node = cluster.add(kind, zone=random.choice(["a", "b"]))  # type: ignore[attr-defined]
        if kind is Node:
            good.append(node)
    cluster.pull(good, within=1200.0)


def test_a_node_whose_line_upstream_crawls_holds_nobody_up() -> None:
    """SlowPeer: others take over its share as they get done."""
    even = Cluster(CHUNKS)
    usual = even.pull([even.add() for _ in range(4)])
    cluster = Cluster(CHUNKS)
    fast = [cluster.add() for _ in range(3)]
    slow = cluster.add(seconds=4 * UPSTREAM_SECONDS)
    seconds = cluster.pull([*fast, slow])
    assert cluster.copies <= 1.05
    assert seconds <= usual + 2 * 4 * UPSTREAM_SECONDS


def test_a_node_that_cant_reach_upstream_gets_all_from_its_peers() -> None:
    cluster = Cluster(CHUNKS)
    nodes = [cluster.add() for _ in range(3)]
    cluster.origin.away.add(nodes[0].name)
    cluster.pull(nodes)


def test_a_killed_node_costs_what_it_hadnt_passed_on() -> None:
    cluster = Cluster(CHUNKS)
    nodes = [cluster.add() for _ in range(4)]
    cluster.clock.after(9.0, nodes[3].stop)
    cluster.pull(nodes[:3])
    assert cluster.copies <= 1.15


def test_partitioned_nodes_take_a_copy_each_side_and_heal() -> None:
    """PartitionedNodes: each side goes on alone; what the sides have is shared once they see each other."""
    cluster = Cluster(3 * CHUNKS)
    nodes = [cluster.add() for _ in range(4)]
    cluster.islands = [{node.name for node in nodes[:2]}]
    cluster.clock.after(6.0, cluster.islands.clear)
    cluster.pull(nodes)
    assert cluster.copies < 2.0


def test_a_node_that_joins_in_the_middle_takes_no_second_copy() -> None:
    cluster = Cluster(CHUNKS)
    first = [cluster.add() for _ in range(2)]
    cluster.clock.after(8.0, lambda: cluster.add().start())
    cluster.pull(first)
    late = list(cluster.nodes.values())[2]
    cluster.clock.run(600.0, lambda: late.finished is not None)
    assert cluster.copies == 1.0


def test_a_warm_node_serves_cold_ones_without_upstream() -> None:
    cluster = Cluster(CHUNKS)
    warm = cluster.add()
    warm.has = set(range(CHUNKS))
    cluster.pull([cluster.add() for _ in range(5)])
    assert cluster.copies == 0.0


def test_zones_share_one_copy_that_crosses_once_or_take_one_each() -> None:
    def run(apart: bool) -> Cluster:
        cluster = Cluster(CHUNKS, apart=apart)
        cluster.pull([cluster.add(zone=zone) for zone in "aaabbb"])
        return cluster

    shared, apart = run(False), run(True)
    assert shared.copies == 1.0
    assert shared.crossed <= 1.1 * CHUNKS
    assert apart.copies == 2.0
    assert apart.crossed == 0


def test_penalties_fade_and_nobody_stays_out_for_ever() -> None:
    now, told = [0.0], []
    reputation = Reputation(lambda: now[0], lambda peer, why: told.append((peer, why)))
    reputation.note("a", Offence.MISSED)
    assert not reputation.is_out("a")
    reputation.note("a", Offence.LIED)
    assert reputation.is_out("a")
    assert told == [("a", "lied")]
    for _ in range(100):
        reputation.note("a", Offence.LIED)
    now[0] += 5 * HALF_LIFE_SECONDS - 1
    assert reputation.is_out("a")
    now[0] += 2
    assert not reputation.is_out("a")
