"""What CPU a replica without GPUs gets: the instruction sets that every node it could run on has."""

from __future__ import annotations

import pytest

from workspace.controller.nodes import Node, hardware
from workspace.schema import Resources

PREFIX = "feature.node.kubernetes.io/cpu-cpuid."
READY = {"conditions": [{"type": "Ready", "status": "True"}]}


def node(name: str, *features: str, **labels: str) -> Node:
    """A node that node feature discovery labelled, unless without features."""
    found = {f"{PREFIX}{feature}": "true" for feature in features} | labels
    return Node.of({"metadata": {"name": name, "labels": found}, "status": READY})


@pytest.mark.parametrize(
    ("nodes", "flags"),
    [
        ([node("a", "AVX2", "AVX512F")], {"avx2", "avx512f"}),
        ([node("a", "AVX2", "AVX512F"), node("b", "AVX2")], {"avx2"}),
        ([node("a", "AVX2"), node("b")], None),  # of one nothing is known
        ([], None),
    ],
)
def test_the_least_of_the_nodes_counts(nodes: list[Node], flags: set[str] | None) -> None:
    assert hardware(nodes, Resources(gpus=0)).cpu_flags == flags


def test_a_selector_leaves_the_nodes_that_matter() -> None:
    nodes = [node("a", "AVX2", "AVX512F", pool="new"), node("b", "AVX2")]
    chosen = Resources.model_validate({"gpus": 0, "nodeSelector": {"pool": "new"}})
    assert hardware(nodes, chosen).cpu_flags == {"avx2", "avx512f"}


def test_a_feature_that_is_denied_isnt_one() -> None:
    labels = {f"{PREFIX}AVX2": "true", f"{PREFIX}AVX512F": "false"}
    (found,) = [Node.of({"metadata": {"name": "a", "labels": labels}, "status": READY})]
    assert hardware([found], Resources(gpus=0)).cpu_flags == {"avx2"}
