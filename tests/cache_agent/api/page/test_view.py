"""What the page shows: rows of nodes, bounded views, and changes that lead from one to the next."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_agent.api.page.node_rows import AgentLook, node_rows
from cache_agent.api.page.view import NodeRows, PageLimits, View, apply, compose, difference
from cache_agent.api.wire import ExplainView, SpaceReport, VictimView
from tests.cache_agent.api.page.samples import (
    GB,
    VERIFIED,
    busy_node,
    cluster_view,
    desired,
    held,
    key_of,
    node,
)

ABOUT = {"kind": "cluster", "name": "cluster"}
SECTIONS = st.sampled_from(["nodes", "cells", "moves"])
ROWS = st.dictionaries(st.sampled_from(["state", "percent"]), st.integers(0, 3), max_size=2)
VIEWS = st.dictionaries(SECTIONS, st.dictionaries(st.sampled_from("abcd"), ROWS))


def id_of(number: int) -> str:
    return key_of(number)[7:27]


def test_a_held_model_shows_where_it_is_and_when_it_was_verified() -> None:
    rows = node_rows(node(models=[held(1, tier="memory", pinned=True, leases=2)]))

    assert rows.cells == {
        id_of(1): {"state": "ready", "tier": "memory", "verified": VERIFIED, "pinned": True, "leases": 2}
    }  # fmt: skip
    assert rows.models[id_of(1)]["name"] == "model-1:v1"
    assert rows.moves == {}


def test_a_fetch_shows_from_where_how_fast_and_how_long() -> None:
    wanted = desired(
        1, "Fetching", bytesDone=4, bytesTotal=16, bytesPerSecond=3, secondsLeft=4, sources=["peer gpu-2"]
    )  # fmt: skip

    rows = node_rows(node(desired=[wanted]))

    (move,) = rows.moves.values()
    shown = {name: move[name] for name in ("what", "node", "state", "percent", "rate", "left")}
    assert shown == {
        "what": "model-1", "node": "gpu-1", "state": "fetching", "percent": 25, "rate": 3, "left": 4,
    }  # fmt: skip
    assert move["sources"] == ["peer gpu-2"]
    assert rows.cells[id_of(1)] == {"state": "fetching", "percent": 25}


def test_a_percentage_is_never_100_before_the_end() -> None:
    wanted = desired(1, "Fetching", bytesDone=999, bytesTotal=1000)

    assert node_rows(node(desired=[wanted])).cells[id_of(1)]["percent"] == 99


def test_failures_and_complaints_are_problems_with_what_to_do() -> None:
    short = {
        "type": "SpaceSufficient", "status": "False", "reason": "NoSpace", "message": "No space for llama.",
        "lastTransitionTime": VERIFIED,
    }  # fmt: skip
    refused = ExplainView(
        subject="pod a/b", state="failed", image="r/x:v1", text="no access", since=0
    )

    rows = node_rows(
        node(
            conditions=[short],
            desired=[desired(1, "Failed", message="Log in to registry.example.")],
        ),
        AgentLook(activity=[refused]),
    )

    assert rows.problems == (
        {"where": "gpu-1", "what": "No space for llama."},
        {"where": "model-1 on gpu-1", "what": "Log in to registry.example."},
        {"where": "pod a/b on gpu-1", "what": "no access"},
    )


def test_a_silent_agent_is_one_problem_and_tells_where_to_look() -> None:
    silent = {
        "type": "Ready", "status": "Unknown", "reason": "NoHeartbeat", "message": "the agent is silent",
        "lastTransitionTime": VERIFIED,
    }  # fmt: skip

    rows = node_rows(node(conditions=[silent], desired=[desired(1, "Failed", message="x")]))

    (problem,) = rows.problems
    assert "spec.nodeName=gpu-1" in problem["what"]
    assert rows.node["silent"] is True


def test_an_agent_knows_its_own_space_and_what_it_would_evict_next() -> None:
    names = {each.name for each in fields(SpaceReport)} - {"root", "roots"}
    space = SpaceReport(
        root="/c", **dict.fromkeys(names, 0) | {"own": 5, "budget": 9, "headroom": 4}
    )
    victims = [
        VictimView(key=key_of(2), image="r/b:v1", freed=3, value=1.0, why="last used 3 d ago")
    ]

    rows = node_rows(node(models=[held(1, leases=1)]), AgentLook(space, (), victims))

    assert (rows.node["used"], rows.node["total"], rows.node["free"]) == (5, 9, 4)
    assert rows.node["leased"] == 16 * GB
    assert rows.node["evictNext"] == [
        {"model": id_of(2), "image": "r/b:v1", "frees": 3, "why": "last used 3 d ago"}
    ]


def test_a_cluster_s_page_has_what_the_agent_reported_of_its_next_victims() -> None:
    victims = [
        {"key": key_of(2), "frees": 3, "uses": 2, "lastUsed": VERIFIED, "fetchSeconds": 40},
        {"key": key_of(9), "frees": 5},
    ]

    rows = node_rows(node(models=[held(1), held(2)], nextVictims=victims))

    assert rows.node["evictNext"] == [
        {"model": id_of(2), "image": held(2)["image"], "frees": 3, "uses": 2, "used": VERIFIED, "took": 40},
        # Of another moment than the models: named by its key.
        {"model": id_of(9), "image": key_of(9), "frees": 5, "uses": 0},
    ]  # fmt: skip


def test_a_node_that_has_not_begun_is_in_the_column_of_the_model_that_others_know() -> None:
    not_begun = desired(1, "Pending", modelKey=None)

    view = compose(
        ABOUT,
        [
            node_rows(node("a", desired=[not_begun])),
            node_rows(node("b", desired=[desired(1, "Ready")])),
        ],
        {},
    )

    assert list(view["models"]) == [id_of(1)]
    assert {cell: row["state"] for cell, row in view["cells"].items()} == {
        f"a/{id_of(1)}": "pending",
        f"b/{id_of(1)}": "ready",
    }


def test_a_view_is_bounded_and_says_what_it_leaves_out() -> None:
    found = [node_rows(busy_node(number, 8)) for number in range(9)]
    quiet = [NodeRows(f"quiet-{number}", {"name": "q"}) for number in range(9)]
    limits = PageLimits(nodes=10, models=5, moves=3, workspaces=1, problems=1)

    view = compose(
        ABOUT,
        [*quiet, *found],
        {"a/up": {"ready": True}, "b/down": {"ready": False}},
        limits=limits,
    )

    assert len(view["nodes"]) == 10
    # Those with something to see are all there.
    assert {each.name for each in found} <= view["nodes"].keys()
    assert len(view["models"]) == 5
    assert {cell.rpartition("/")[2] for cell in view["cells"]} <= view["models"].keys()
    assert list(view["workspaces"]) == ["b/down"]
    left = view["about"][""]["leftOut"]
    assert (left["nodes"], left["models"], left["workspaces"]) == (8, 3, 1)
    assert left["moves"] > 0
    assert left["problems"] > 0


def test_a_cluster_of_200_nodes_and_50_models_is_shown_whole() -> None:
    view = cluster_view(200, 50)

    assert (len(view["nodes"]), len(view["models"])) == (200, 50)
    assert set(view["about"][""].get("leftOut", {})) <= {"moves", "problems"}


@given(VIEWS, VIEWS)
def test_a_change_leads_from_one_view_to_the_next(before: View, after: View) -> None:
    change = difference(before, after)

    reached = apply(before, change)

    assert {name: rows for name, rows in reached.items() if rows} == {
        name: rows for name, rows in after.items() if rows
    }
    assert (change is None) == (_filled(before) == _filled(after))


def _filled(view: View) -> View:
    return {name: rows for name, rows in view.items() if rows}


@pytest.mark.parametrize("same", [True, False])
def test_rows_that_are_the_same_or_equal_are_no_change(same: bool) -> None:
    view: dict[str, Any] = {"nodes": {"a": {"used": 1}}}
    other = {"nodes": {"a": view["nodes"]["a"] if same else {"used": 1}}}

    assert difference(view, other) is None


@pytest.mark.parametrize(("rate", "why"), [(0.0, "being fetched, no bytes for 12 s"), (1e6, "")])
def test_a_fetch_says_why_no_bytes_come(rate: float, why: str) -> None:
    view = ExplainView(
        subject="image r/a:v1", state="waiting", image="r/a:v1", text="being fetched, no bytes for 12 s",
        since=0, total=10, done=5, bytes_per_second=rate,
    )  # fmt: skip
    names = {each.name for each in fields(SpaceReport)} - {"root", "roots"}
    look = AgentLook(SpaceReport(root="/c", **dict.fromkeys(names, 0)), (view,), ())

    (move,) = node_rows(node(), look).moves.values()

    assert move.get("why", "") == why
