"""What CPU a replica without GPUs gets: the instruction sets that every node it could run on has."""

from __future__ import annotations

import pytest

from workspace.controller.observation.nodes import KubeNode, hardware
from workspace.hardware import refusal
from workspace.schema import Resources

PREFIX = "feature.node.kubernetes.io/cpu-cpuid."
READY = {"conditions": [{"type": "Ready", "status": "True"}]}


def node(name: str, *features: str, **labels: str) -> KubeNode:
    """A node that node feature discovery labelled, unless without features."""
    found = {f"{PREFIX}{feature}": "true" for feature in features} | labels
    return KubeNode.from_document({"metadata": {"name": name, "labels": found}, "status": READY})


@pytest.mark.parametrize(
    ("nodes", "flags"),
    [
        ([node("a", "AVX2", "AVX512F", "SSE4")], [{"avx2", "avx512f"}]),
        ([node("a", "AVX2", "AMXTILE")], [{"avx2", "amx_tile"}]),
        ([node("a", "AVX2", "AVX512F"), node("b", "AVX2")], [{"avx2"}, {"avx2", "avx512f"}]),
        ([node("a", "AVX2"), node("b", "ASIMD")], [{"asimd"}, {"avx2"}]),
        ([node("a", "AVX2"), node("b")], []),  # of one nothing is known
        (
            [node("a", "AVX2"), node("b", "VMX")],
            [],
        ),  # nor of one whose labels leave out what matters
        ([], []),
    ],
)
def test_every_nodes_cpu_counts(nodes: list[KubeNode], flags: list[set[str]]) -> None:
    assert list(hardware(nodes, Resources(gpus=0)).cpus) == flags


def test_a_selector_leaves_the_nodes_that_matter() -> None:
    nodes = [node("a", "AVX2", "AVX512F", pool="new"), node("b", "AVX2")]
    chosen = Resources.model_validate({"gpus": 0, "nodeSelector": {"pool": "new"}})
    assert hardware(nodes, chosen).cpus == ({"avx2", "avx512f"},)


def test_a_feature_that_is_denied_isnt_one() -> None:
    labels = {f"{PREFIX}AVX2": "true", f"{PREFIX}AVX512F": "false"}
    (found,) = [
        KubeNode.from_document({"metadata": {"name": "a", "labels": labels}, "status": READY})
    ]
    assert hardware([found], Resources(gpus=0)).cpus == ({"avx2"},)


def test_what_one_node_does_not_run_is_passed_over_and_what_all_run_is_not() -> None:
    nodes = [node("a", "AVX2", "AVX512F"), node("b", "ASIMD")]
    found = hardware(nodes, Resources(gpus=0))
    assert refusal(found, "bf16") is None
    assert "AVX-512" in str(refusal(found, "int4"))
    assert refusal(hardware(nodes[:1], Resources(gpus=0)), "int4") is None
