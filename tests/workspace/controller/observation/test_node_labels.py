"""A node's labels follow what its agent says it holds, and its taint goes once the pinned models are verified."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_agent.api.cached_model import CachedModel
from cache_agent.api.node_cache import NodeCache
from cache_agent.api.shared_names import STARTUP_TAINT, node_label
from tests.workspace.controller import caches
from tests.workspace.controller.fakeapi import merge_json
from workspace.controller.observation.node_labels import (
    NodeLabels,
    has_started,
    parse_node_cache,
    patch,
    wanted_marks,
    without_taint,
)

Json = dict[str, Any]
A, B = "registry.example/a:1", "registry.example/b:1"
LABEL_A, LABEL_B = node_label(caches.key_of(A)), node_label(caches.key_of(B))


def cache(**parts: Any) -> NodeCache:
    return NodeCache.model_validate(caches.node_cache("n1", **parts))


def pinned(name: str = "chat", **spec: Any) -> CachedModel:
    document = caches.cached_model(name, pin=True, **spec)
    document["metadata"]["generation"] = 2
    return CachedModel.parse(document)


def test_each_model_has_a_label_and_its_whole_name_beside() -> None:
    marks = wanted_marks(cache(models=(caches.held(A), caches.held(B))), [], {})
    assert marks.labels == {LABEL_A: "ready", LABEL_B: "ready"}
    assert marks.annotations[LABEL_A] == f"{caches.key_of(A)} bf16 {A}"


def test_a_model_that_is_about_to_go_loses_its_label_first() -> None:
    marks = wanted_marks(cache(models=(caches.held(A, "Releasing"), caches.held(B))), [], {})
    assert set(marks.labels) == {LABEL_B}


def test_a_store_that_is_not_sound_and_a_node_without_agent_hold_nothing() -> None:
    assert wanted_marks(cache(models=(caches.held(A),), Ready="False"), [], {}).labels == {}
    assert wanted_marks(None, [], {}).labels == {}


def test_a_model_under_a_name_that_is_not_known_gets_no_label() -> None:
    odd = {**caches.held(A), "key": "blake3:abc"}
    assert wanted_marks(cache(models=(odd,)), [], {}).labels == {}


@pytest.mark.parametrize(
    ("wanted", "conditions", "started"),
    [
        ((caches.report("chat", generation=2),), {}, True),
        ((), {}, False),
        ((caches.report("chat", "Fetching", generation=2),), {}, False),
        ((caches.report("chat", generation=1),), {}, False),  # of a spec from before
        ((caches.report("chat", generation=2),), {"PinnedReady": "False"}, False),
        ((caches.report("chat", generation=2),), {"Synced": "Unknown"}, False),
    ],
)
def test_a_node_has_started_once_every_pinned_model_is_verified(
    wanted: tuple[Json, ...], conditions: dict[str, str], started: bool
) -> None:
    assert has_started(cache(desired=wanted, **conditions), [pinned()], {}) is started


def test_models_of_other_nodes_and_unpinned_ones_hold_no_node_back() -> None:
    other = pinned(nodeSelector={"pool": "b"})
    loose = CachedModel.parse(caches.cached_model("loose"))
    assert has_started(cache(), [other, loose], {"pool": "a"})
    assert not has_started(cache(), [other], {"pool": "b"})


names = st.sampled_from([LABEL_A, LABEL_B, node_label(caches.key_of("c"))])
marks = st.dictionaries(names, st.sampled_from(["ready", "stale"]))


@given(marks, marks, marks)
def test_the_patch_makes_it_so_touches_nothing_else_and_is_needed_once(
    labels: dict[str, str], annotations: dict[str, str], wanted: dict[str, str]
) -> None:
    node = caches.node("n1", zone="z")
    node["metadata"]["labels"] |= labels
    node["metadata"]["annotations"] = {"theirs": "kept", **annotations}
    goal = NodeLabels(wanted, wanted)
    change = patch(NodeLabels.from_document(node), goal)
    patched = merge_json(node, change) if change else node
    assert (
        NodeLabels.from_document(patched).labels
        == NodeLabels.from_document(patched).annotations
        == wanted
    )
    assert patched["metadata"]["labels"]["zone"] == "z"
    assert patched["metadata"]["annotations"]["theirs"] == "kept"
    assert patch(NodeLabels.from_document(patched), goal) is None


def test_only_the_startup_taint_goes_and_only_from_the_node_that_was_read() -> None:
    node = caches.node("n1", starting=True)
    node["metadata"]["resourceVersion"] = "7"
    change = without_taint(copy.deepcopy(node))
    assert change is not None
    assert change["metadata"] == {"resourceVersion": "7"}
    assert [each["key"] for each in change["spec"]["taints"]] == ["other"]
    assert without_taint(merge_json(node, change)) is None
    assert not NodeLabels.from_document(merge_json(node, change)).starting
    assert STARTUP_TAINT.startswith("cache.weightyard.dev/")


def test_a_report_that_cannot_be_read_is_none() -> None:
    assert parse_node_cache({"kind": "NodeCache", "metadata": {"name": "n"}}) is None
