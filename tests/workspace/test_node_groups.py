"""Servers on several nodes: what is planned for them, what is refused, and what a model that fits no node is told."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelimage.errors import InvalidInput
from tests.workspace import samples
from workspace import arguments
from workspace.controller.observation.nodes import KubeNode, eligible, hardware
from workspace.fit import DoesNotFit, needed_bytes
from workspace.hardware import requested_hardware
from workspace.launch_plan import Site, check_environment, choose_variant, plan_launch
from workspace.node_groups import GroupAddress
from workspace.render.release import PinnedModel, Release, store_site
from workspace.schema import Workspace

GB = samples.GB
ADDRESS = GroupAddress("leader.example", "7")
# Llama-3.1-405B in bf16: 8 H100s of one node hold less than half of it.
LARGE = {
    "weight_bytes": 811 * GB, "kv_cache_bytes_per_token": 516_096, "kv_heads": 8,
    "tensor_parallel_sizes": (1, 2, 4, 8),
}  # fmt: skip


def large(**facts: Any) -> PinnedModel:
    record = samples.record("bf16", **(LARGE | facts))
    return PinnedModel(samples.pinned().image, {"bf16": record})


def planned(resources: dict[str, Any], **spec: Any) -> Release:
    workspace = samples.workspace(resources=resources, **spec)
    return samples.release(workspace, model=large())


def value(words: tuple[str, ...], flag: str) -> str | None:
    return arguments.value_of(words, flag)


def test_gpus_of_a_node_share_layers_and_nodes_are_stages() -> None:
    plan = planned({"gpu": "H100", "nodes": 2}).plan
    assert (plan.nodes, plan.gpus, plan.node_gpus) == (2, 16, 8)
    for words in (plan.args, plan.worker_args):
        assert value(words, "--tensor-parallel-size") == "8"
        assert value(words, "--pipeline-parallel-size") == "2"
        assert value(words, "--nnodes") == "2"
        assert value(words, "--master-addr") == "$(LWS_LEADER_ADDRESS)"
        assert value(words, "--distributed-executor-backend") == "mp"
    assert value(plan.args, "--node-rank") == "0"
    assert value(plan.worker_args, "--node-rank") == "$(LWS_WORKER_INDEX)"
    assert "--headless" in plan.worker_args
    assert "--headless" not in plan.args


def test_a_node_is_asked_for_its_own_part() -> None:
    one = planned({"gpu": "B300", "gpus": 4})
    two = planned({"gpu": "B300", "gpus": 8, "nodes": 2})
    assert (two.memory_bytes, two.cpus) == (one.memory_bytes, one.cpus)


@given(nodes=st.integers(2, 8), per_node=st.sampled_from([1, 2, 4, 8]))
def test_both_kinds_of_processes_agree_on_everything_but_their_part(
    nodes: int, per_node: int
) -> None:
    resources = {"gpuMemory": "900Gi", "gpus": nodes * per_node, "nodes": nodes}
    plan = planned(resources, runtime={"args": ["--seed", "1"], "contextLength": 4096}).plan
    own = [("--node-rank", "0"), ("--node-rank", "$(LWS_WORKER_INDEX)")]
    leader, worker = list(plan.args), list(plan.worker_args)
    for words, (flag, rank) in zip((leader, worker), own, strict=True):
        at = words.index(flag)
        assert words[at + 1] == rank
        del words[at : at + 2]
    worker.remove("--headless")
    assert leader == worker
    tensor = value(plan.args, "--tensor-parallel-size") or "1"
    assert int(tensor) * int(value(plan.args, "--pipeline-parallel-size") or 0) == plan.gpus


@pytest.mark.parametrize("gpu", ["H100", "A100", "L40S", "L4"])
def test_a_model_that_fits_no_node_is_told_how_many_it_fits(gpu: str) -> None:
    with pytest.raises(DoesNotFit) as error:
        planned({"gpu": gpu})
    found = str(error.value.hint).rpartition("spec.resources.nodes: ")[2].rstrip(".")
    assert planned({"gpu": gpu, "nodes": int(found)}).plan.nodes == int(found)
    with pytest.raises(DoesNotFit):
        planned({"gpu": gpu, "nodes": int(found) - 1})


@pytest.mark.parametrize(
    "spec",
    [
        {"runtime": {"engine": "tgi"}},
        {"resources": {"gpu": "H100", "fraction": 0.5}},
        {"runtime": {"args": ["--pipeline-parallel-size", "2"]}},
    ],
)
def test_nodes_are_advised_only_where_they_may_be_set(spec: dict[str, Any]) -> None:
    with pytest.raises(DoesNotFit) as error:
        samples.release(samples.workspace(**({"resources": {"gpu": "H100"}} | spec)), model=large())
    assert "resources.nodes" not in str(error.value.hint)


def test_counts_that_vllm_refuses_are_told_for_all_nodes() -> None:
    with pytest.raises(DoesNotFit, match="among 2, 4, 8 or 16 GPUs, not 6"):
        planned({"gpu": "B300", "gpus": 6, "nodes": 2})


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--nnodes", "3"], "--nnodes"),
        (["--node-rank=1"], "--node-rank"),
        (["--master_addr", "x"], "--master-addr"),
        (["--distributed-executor-backend", "ray"], "--distributed-executor-backend"),
        (["--headless"], "--headless"),
        (["-dp", "2"], "--data-parallel-size"),
        (["-pp", "3"], "--pipeline-parallel-size is 3"),
    ],
)
def test_arguments_that_break_a_group_are_refused(args: list[str], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        planned({"gpu": "B300", "nodes": 2}, runtime={"args": args})


def test_more_stages_than_nodes_stay_within_nodes() -> None:
    plan = planned({"gpu": "B300", "gpus": 8, "nodes": 2}, runtime={"args": ["-pp", "4"]}).plan
    assert value(plan.args, "--tensor-parallel-size") == "2"
    assert plan.node_gpus == 4


@pytest.mark.parametrize(
    "runtime",
    [{"args": ["--enforce-eager"]}, {"adapters": [{"name": "a", "image": "r.example/a:v1"}]}],
)
def test_what_ends_stages_on_cpus_is_refused(runtime: dict[str, Any]) -> None:
    workspace = samples.workspace(resources={"gpus": 0, "nodes": 2}, runtime=runtime)
    with pytest.raises(InvalidInput, match="pipeline stages"):
        samples.release(workspace)


def test_a_model_that_has_no_stages_is_refused_and_not_told_to_spread() -> None:
    model = large(architecture="Gemma3nForCausalLM")
    workspace = samples.workspace(resources={"gpu": "B300", "nodes": 2})
    with pytest.raises(InvalidInput, match="doesn't split Gemma3nForCausalLM"):
        samples.release(workspace, model=model)
    with pytest.raises(DoesNotFit) as error:
        samples.release(samples.workspace(resources={"gpu": "L4"}), model=model)
    assert "resources.nodes" not in str(error.value.hint)


def test_cpus_of_several_nodes_share_the_model() -> None:
    one = samples.release(samples.workspace(resources={"gpus": 0}))
    two = samples.release(samples.workspace(resources={"gpus": 0, "nodes": 2}))
    assert two.memory_bytes < one.memory_bytes
    assert two.plan.gpus == 0
    # Without a warm-up a stage has no buffers for what the one before it computed.
    assert "--enforce-eager" not in two.plan.args
    assert "--compilation-config" in two.plan.worker_args


@given(weights=st.integers(1, 10**12), context=st.integers(0, 1 << 20), nodes=st.integers(1, 8))
def test_a_node_needs_no_more_than_all_of_it_and_no_less_than_its_share(
    weights: int, context: int, nodes: int
) -> None:
    facts = samples.facts(weight_bytes=weights)
    whole = needed_bytes(facts, context=context, gpus=0)
    part = needed_bytes(facts, context=context, gpus=0, pipeline=nodes, nodes=nodes)
    assert whole / nodes <= part <= whole


def test_one_machine_is_refused_where_it_is_planned() -> None:
    workspace = samples.workspace(resources={"gpus": 0, "nodes": 2})
    record = samples.record("bf16")
    hardware = requested_hardware(workspace.spec.resources)
    fit = choose_variant(workspace, {"bf16": record}, hardware)
    here = Site(PurePosixPath("/m"), "127.0.0.1", 8000)
    with pytest.raises(InvalidInput, match="runs on one machine"):
        plan_launch(workspace, record=record, fit=fit, hardware=hardware, site=here)
    there = Site(PurePosixPath("/m"), "0.0.0.0", 8000, group=ADDRESS)  # noqa: S104
    plan = plan_launch(workspace, record=record, fit=fit, hardware=hardware, site=there)
    assert value(plan.worker_args, "--node-rank") == "7"


def test_compose_and_up_refuse_several_nodes() -> None:
    workspace = samples.workspace(resources={"gpu": "L4", "nodes": 2})
    with pytest.raises(InvalidInput, match="runs on one machine"):
        samples.release(workspace, site_of=store_site(workspace, PurePosixPath("/store")))
    # `up` asks before it pulls anything.
    with pytest.raises(InvalidInput, match="runs on one machine"):
        check_environment(workspace)


def node(name: str, gpus: int) -> KubeNode:
    labels = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    return KubeNode(name, labels, (), {"nvidia.com/gpu": str(gpus)}, usable=True)


def spread(**resources: Any) -> Workspace:
    return samples.workspace(resources={"nodes": 2, **resources})


def test_hardware_is_that_of_all_nodes_and_a_node_needs_its_share() -> None:
    nodes = [node("a", 8), node("b", 4), node("c", 2)]
    assert hardware(nodes, spread(gpus=8).spec.resources).count == 8
    # The weakest node that may get a pod counts: the scheduler may choose it.
    assert hardware(nodes, spread().spec.resources).count == 4
    resources = spread(gpus=8).spec.resources
    assert [each.name for each in eligible(nodes, resources, gpus=resources.node_gpus or 0)] == [
        "a",
        "b",
    ]
