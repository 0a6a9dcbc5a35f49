"""What the user's arguments and the adapters change: context, ranks, compute dtype, parallel sizes."""

from __future__ import annotations

from typing import Any

import pytest

from modelimage.errors import InvalidInput
from tests.workspace.samples import facts, record, workspace
from workspace.arguments import document_of, length_of
from workspace.engine_arguments import check_dtype, lora_rank, served_facts
from workspace.hardware import GPUS, requested_hardware
from workspace.launch_plan import choose_variant


@pytest.mark.parametrize(
    ("value", "length"),
    [("8192", 8192), ("8k", 8000), ("8K", 8192), ("-1", None), ("auto", None), ("25.6k", 25600)],
)
def test_lengths(value: str, length: int | None) -> None:
    assert length_of(["--max-model-len", value], "--max-model-len") == length
    assert length_of([f"--max_model_len={value}"], "--max-model-len") == length


def test_a_json_flag_has_dotted_forms() -> None:
    user = ["--hf-overrides", '{"a": 1}', "--hf-overrides.text_config.b", "2", "--other.c", "3"]
    assert document_of(user, "--hf-overrides") == {"a": 1, "text_config": {"b": 2}}
    assert document_of(["--hf-overrides", "not JSON"], "--hf-overrides") == {}


@pytest.mark.parametrize(
    ("overrides", "length"),
    [
        ('{"max_position_embeddings": 262144}', 262144),
        ('{"text_config": {"max_position_embeddings": 4096}}', 4096),
        ('{"rope_scaling": {"rope_type": "linear", "factor": 2.0}}', 262144),
        ('{"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}', 131072),
        ('{"architectures": ["Other"]}', 131072),
    ],
)
def test_overrides_change_the_context(overrides: str, length: int) -> None:
    assert served_facts(facts(), ["--hf-overrides", overrides], {}).context_length == length


def test_vllm_may_be_allowed_any_context() -> None:
    assert served_facts(facts(), [], {"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"}).context_length == 0


def test_ranks_are_rounded_up_to_those_that_vllm_takes() -> None:
    assert [lora_rank(ranks) for ranks in ([], [0], [8, 12], [33], [512])] == [0, 0, 16, 64, 512]
    with pytest.raises(InvalidInput, match="rank 513"):
        lora_rank([513])


def test_a_dtype_that_vllm_refuses_is_refused() -> None:
    with pytest.raises(InvalidInput, match="gemma2 models in float16"):
        check_dtype(facts(model_type="gemma2"), GPUS["L4"], ["--dtype", "half"])
    with pytest.raises(InvalidInput, match="T4 can't compute in bfloat16"):
        check_dtype(facts(), GPUS["T4"], ["--dtype=bfloat16"])
    check_dtype(facts(), GPUS["L4"], ["--dtype=bfloat16"])


def _gpus(resources: dict[str, Any], *args: str) -> tuple[int, int]:
    spec = workspace(resources={"gpu": "H100", **resources}, runtime={"args": list(args)})
    fit = choose_variant(spec, {"bf16": record()}, requested_hardware(spec.spec.resources))
    return fit.gpus, fit.tensor_parallel


def test_parallel_sizes_of_the_arguments_decide_the_gpus() -> None:
    assert _gpus({}, "--pipeline-parallel-size", "4") == (4, 1)
    assert _gpus({}, "-tp", "2", "-pp", "2", "-dp", "2") == (8, 2)
    assert _gpus({"gpus": 8}, "-pp", "2") == (8, 4)
    assert _gpus({}, "-dp", "16", "--data-parallel-size-local", "8") == (8, 1)
    with pytest.raises(InvalidInput, match="3 tensor parallel groups can't share"):
        _gpus({"gpus": 8}, "-pp", "3")
