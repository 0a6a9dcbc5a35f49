"""Servers on nodes that go: how many more are asked for, what evictions must leave, and which stop first."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workspace.controller.observation.mount_news import MountNews
from workspace.controller.servers.pod_marks import (
    COST,
    DO_NOT_DISRUPT,
    OURS,
    deletion_costs,
    disruption_marks,
    marking,
)
from workspace.controller.servers.replacements import Departures, interrupted, least_ready, surge
from workspace.controller.servers.shares import Shares, moved

Json = dict[str, Any]
GONE = Departures(leaving=frozenset({"old", "cut"}), interrupted=frozenset({"cut"}))


def server(uid: str, node: str | None, *, ready: bool = True, **annotations: str) -> Json:
    return {
        "kind": "Pod", "metadata": {"name": uid, "uid": uid, "annotations": annotations},
        "spec": {"nodeName": node} if node else {},
        "status": {"conditions": [{"type": "Ready", "status": str(ready)}]},
    }  # fmt: skip


SERVERS = st.lists(
    st.tuples(st.sampled_from(["old", "cut", "new", None]), st.booleans()), max_size=8
).map(
    lambda listed: [
        server(f"p{n}", where, ready=ready and where is not None)
        for n, (where, ready) in enumerate(listed)
    ]
)


@given(servers=SERVERS, wanted=st.integers(0, 6))
def test_a_server_on_a_node_that_goes_does_not_count(servers: list[Json], wanted: int) -> None:
    """Law: with the surge as many start elsewhere as are missing there, up to a quarter; without, enough serve."""
    more = surge(servers, GONE, wanted=wanted)
    moved_away = [pod for pod in servers if pod["spec"].get("nodeName") == "old"]
    elsewhere = [pod for pod in servers if pod["spec"].get("nodeName") in ("new", None)]
    serving = len([pod for pod in elsewhere if ready(pod)])
    assert more <= min(len(moved_away), max(1, wanted // 4))
    if not wanted or not moved_away or serving >= wanted:
        assert more == 0
    elif more == 0:
        # Those that are given up now are made up for.
        step = min(len(moved_away), max(1, wanted // 4))
        assert serving + len(moved_away) - step >= wanted


@pytest.mark.parametrize(("replicas", "most"), [(1, 1), (2, 1), (4, 1), (8, 2), (11, 2)])
def test_a_pool_that_is_drained_at_once_is_left_in_steps(replicas: int, most: int) -> None:
    """As a ReplicaSet would: it makes what is missing, and stops those on nodes that go first."""
    pods = [server(f"o{n}", "old") for n in range(replicas)]
    for number in range(20 * replicas):
        more = surge(pods, GONE, wanted=replicas)
        assert more <= most
        if len(pods) < replicas + more:
            pods.append(server(f"n{number}", "new", ready=False))
        elif len(pods) > replicas + more:
            pods.remove(min(pods, key=lambda pod: (ready(pod), not GONE.takes(pod))))
        elif not all(map(ready, pods)):
            pods = [server(pod["metadata"]["uid"], pod["spec"]["nodeName"]) for pod in pods]
        assert len([pod for pod in pods if ready(pod)]) >= replicas
    assert [pod["spec"]["nodeName"] for pod in pods] == ["new"] * replicas


@given(servers=SERVERS, wanted=st.integers(1, 6), replaceable=st.booleans())
def test_evictions_leave_all_that_are_wanted(
    servers: list[Json], wanted: int, replaceable: bool
) -> None:
    least = least_ready(servers, GONE, wanted=wanted, replaceable=replaceable)
    drained = any(map(GONE.drains, servers))
    assert least == (wanted - int(not replaceable) if drained else None)


@given(servers=SERVERS)
def test_servers_whose_node_ends_are_deleted_and_no_others(servers: list[Json]) -> None:
    found = {each.uid for each in interrupted(servers, GONE)}
    assert found == {
        pod["metadata"]["uid"] for pod in servers if pod["spec"].get("nodeName") == "cut"
    }


COUNTS = st.integers(0, 5)


@given(
    wanted=st.builds(Shares, COUNTS, COUNTS),
    asked=st.builds(Shares, COUNTS, COUNTS),
    data=st.data(),
)
def test_servers_that_move_between_deployments_are_never_missing(
    wanted: Shares, asked: Shares, data: st.DataObject
) -> None:
    ready = Shares(
        data.draw(st.integers(0, asked.rest)), data.draw(st.integers(0, asked.on_demand))
    )
    found = moved(wanted, asked, ready, total=wanted.total)
    assert found.rest >= wanted.rest
    assert found.on_demand >= wanted.on_demand
    # Of ready servers at least as many stay as are wanted, or as there are.
    kept = Shares(min(ready.rest, found.rest), min(ready.on_demand, found.on_demand))
    assert kept.total >= min(wanted.total, ready.total)
    # When all are ready, nothing is left over.
    settled = moved(wanted, found, found, total=wanted.total)
    again = moved(wanted, settled, settled, total=wanted.total)
    assert moved(wanted, again, again, total=wanted.total) == wanted


@given(
    servers=SERVERS,
    running=st.dictionaries(st.sampled_from(["p0", "p1", "p2"]), st.integers(0, 50)),
)
def test_the_cheapest_to_lose_goes_first(servers: list[Json], running: dict[str, int]) -> None:
    costs = deletion_costs(servers, GONE, spot=["new"], running=running, ordered=True)
    for pod in servers:
        cost = costs.get(pod["metadata"]["uid"]) or "0"
        pod["metadata"]["annotations"] |= {COST: cost, OURS[COST]: cost}
    order = sorted(servers, key=lambda pod: int(pod["metadata"]["annotations"][COST]))
    ranks = [
        (not GONE.takes(pod), pod["spec"].get("nodeName") != "new", running.get(pod["metadata"]["uid"], 0))
        for pod in order
        if not GONE.takes(pod)
    ]  # fmt: skip
    assert ranks == sorted(ranks)
    assert [GONE.takes(pod) for pod in order] == sorted(map(GONE.takes, order), reverse=True)
    # What is written is there: nothing is written again.
    assert deletion_costs(servers, GONE, spot=["new"], running=running, ordered=True) == {}


def test_costs_are_written_when_they_matter_and_only_then() -> None:
    alike = [server("a", "new"), server("b", "other")]

    def costs(pods: list[Json], *, ordered: bool, spot: tuple[str, ...] = ()) -> Json:
        return dict(
            deletion_costs(pods, GONE, spot=spot, running={"a": 3, "b": 3}, ordered=ordered)
        )

    assert costs(alike, ordered=True) == {}
    assert costs(alike, ordered=False, spot=("new",)) == {}
    assert costs(alike, ordered=True, spot=("new",)) == {"a": "-9997", "b": "3"}
    going = [server("a", "old"), server("b", "other")]
    assert costs(going, ordered=False) == {"a": "-20000"}
    stays = [server("a", "new", **cost("-20000")), server("b", "other", **cost("7"))]
    assert costs(stays, ordered=False) == {"a": None}


def cost(value: str) -> dict[str, str]:
    return {COST: value, OURS[COST]: value}


def test_what_others_wrote_stays_theirs() -> None:
    """Unless the node goes; and also where they wrote over ours."""
    theirs = [server("a", "new", **{COST: "5"}), server("b", "new", **cost("3") | {COST: "7"})]
    plain = [*theirs, server("c", "other")]
    costs = deletion_costs(plain, GONE, spot=["new"], running={"c": 2}, ordered=True)
    assert costs == {"c": "2"}
    kept = server("a", "new", **{COST: "-20000"})
    assert deletion_costs([kept], GONE, spot=[], running={}, ordered=False) == {}
    leaves = server("a", "old", **{COST: "5"})
    assert deletion_costs([leaves], GONE, spot=[], running={}, ordered=False) == {"a": "-20000"}
    for value in ("true", "false"):
        for pod in (
            server("a", "new", **{DO_NOT_DISRUPT: value}),
            server("a", "old", **{DO_NOT_DISRUPT: value}),
        ):
            assert marked(pod) == {}


@given(
    pods=SERVERS,
    marks=st.dictionaries(
        st.sampled_from(list(OURS)),
        st.dictionaries(st.sampled_from(["p0", "p1", "p2"]), st.sampled_from([None, "1"])),
    ),
)
def test_a_mark_is_written_and_removed_with_its_companion(pods: list[Json], marks: Json) -> None:
    for write in marking(pods, marks):
        for name, companion in OURS.items():
            assert (name in write.annotations) == (write.uid in marks.get(name, {}))
            assert write.annotations.get(name) == write.annotations.get(companion)


def ready(pod: Json) -> bool:
    return bool(pod["status"]["conditions"][0]["status"] == "True")


def marked(pod: Json, *, by_karpenter: bool = True, failed: bool = False) -> Json:
    news = {"a": MountNews("fetching", failed)} if failed else {}
    return dict(disruption_marks([pod], GONE, news, marked=by_karpenter))


def test_karpenter_leaves_a_pod_alone_until_its_model_is_there() -> None:
    mark = {DO_NOT_DISRUPT: "true", OURS[DO_NOT_DISRUPT]: "true"}
    assert marked(server("a", "new", ready=False)) == {"a": "true"}
    assert marked(server("a", "new", ready=False), by_karpenter=False) == {}
    assert marked(server("a", None, ready=False)) == {}
    assert marked(server("a", "old", ready=False)) == {}
    assert marked(server("a", "old", ready=False, **mark)) == {"a": None}
    assert marked(server("a", "new", ready=False), failed=True) == {}
    assert marked(server("a", "new", ready=False, **mark)) == {}
    assert marked(server("a", "new", **mark)) == {"a": None}
    restarted = server("a", "new", ready=False, **mark)
    restarted["status"]["containerStatuses"] = [{"name": "server", "restartCount": 1}]
    assert marked(restarted) == {"a": None}
    # A sidecar, which has no startup probe, counts as started from its first moment.
    beside = server("a", "new", ready=False)
    beside["status"]["containerStatuses"] = [{"name": "log-shipper", "started": True}]
    assert marked(beside) == {"a": "true"}
