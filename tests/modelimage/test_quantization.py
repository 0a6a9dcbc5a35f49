"""How published checkpoints state their quantization, and how many parameters their tensors hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from modelimage.architectures import pools
from modelimage.model_facts import model_facts
from modelimage.quantization import Quantization, quantization_block, quantization_of
from modelimage.record import Record
from modelimage.safetensors import Header, TensorInfo
from tests.modelimage.test_record import small_record


def _compressed(weights: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": {"weights": weights, **more}},
    }


@pytest.mark.parametrize(
    ("quantization", "variant"),
    [
        (Quantization(), ""),
        (Quantization("awq", 4), "awq"),
        (Quantization("gptq", 4), "gptq-int4"),
        (Quantization("gptq", 8), "gptq-int8"),
        (Quantization("gptq", 0), "gptq"),
        (Quantization("bitsandbytes", 4), "bnb-4bit"),
        (Quantization("bitsandbytes", 8), "bnb-8bit"),
        (Quantization("nvfp4", 4), "nvfp4"),
        (Quantization("fp8-block", 8), "fp8"),
        (Quantization("fp8-modelopt", 8), "fp8"),
        (Quantization("w4a8-fp8", 4), "w4a8-fp8"),
        (Quantization("int8-w8a16", 8), "int8-w8a16"),
        (Quantization("../My Method!", 0), "my-method"),
        (Quantization("x" * 300, 0), "x" * 40),
    ],
)
def test_a_variant_is_named_by_its_quantization(quantization: Quantization, variant: str) -> None:
    assert quantization.variant == variant


@pytest.mark.parametrize(
    ("stated", "found"),
    [
        ({"quant_method": "awq", "bits": 4}, Quantization("awq", 4)),
        ({"quant_method": "gptq", "bits": 8}, Quantization("gptq", 8)),
        ({"quant_method": "fp8", "activation_scheme": "dynamic"}, Quantization("fp8", 8)),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, Quantization("fp8-block", 8)),
        (_compressed({"num_bits": 8, "type": "float", "strategy": "block"}), Quantization("fp8-block", 8)),
        ({"quant_method": "modelopt", "quant_algo": "FP8_PB_WO"}, Quantization("fp8-block", 8)),
        ({"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "MXFP8"}}, Quantization("mxfp8", 8)),
        ({"quant_method": "mxfp8"}, Quantization("mxfp8", 8)),
        ({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION",
          "quantized_layers": {"a": {"quant_algo": "FP8"}, "b": {"quant_algo": "NVFP4"}}}, Quantization("nvfp4", 4)),
        ({"quant_method": "modelopt", "kv_cache_quant_algo": "FP8"}, Quantization()),
        ({"quantization": {"quant_algo": "INT4_AWQ"}}, Quantization("modelopt-int4_awq", 0)),
        ({"quant_method": "auto-round", "bits": 4, "packing_format": "auto_round:auto_gptq"}, Quantization("gptq", 4)),
        ({"quant_method": "auto-round", "bits": 4, "packing_format": "auto_round:auto_awq"}, Quantization("awq", 4)),
        ({"quant_method": "compressed-tensors", "config_groups": {
            "a": {"weights": {"num_bits": 8, "type": "float"}, "format": "float-quantized"},
            "b": {"weights": {"num_bits": 4, "type": "float", "group_size": 16}, "format": "nvfp4-pack-quantized"}}},
         Quantization("nvfp4", 4)),
        ({"bits": 4, "group_size": 64}, Quantization("mlx", 4)),
        ({"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4}}}, Quantization("hqq", 0)),
        ({"quant_method": "exl2", "bits": 4.0}, Quantization("exl2", 0)),
        ({"quant_method": "mxfp4"}, Quantization("mxfp4", 4)),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, Quantization("bitsandbytes", 4)),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, Quantization("bitsandbytes", 8)),
        ({"producer": {"name": "modelopt"}, "quant_algo": "NVFP4"}, Quantization("nvfp4", 4)),
        ({"quantization": {"quant_algo": "FP8"}}, Quantization("fp8-modelopt", 8)),
        ({"quant_method": "fbgemm_fp8"}, Quantization("fp8-fbgemm", 8)),
        (_compressed({"num_bits": 4, "type": "int"}), Quantization("int4", 4)),
        (_compressed({"num_bits": 4, "type": "float", "group_size": 16}), Quantization("nvfp4", 4)),
        (_compressed({"num_bits": 8, "type": "float"}), Quantization("fp8", 8)),
        (_compressed({"num_bits": 8, "type": "int"}), Quantization("int8-w8a16", 8)),
        (_compressed({"num_bits": 8, "type": "int"}, input_activations={"num_bits": 8}),
         Quantization("int8", 8)),
        (_compressed({"num_bits": 4, "type": "int"}, input_activations={"num_bits": 8, "type": "int"}),
         Quantization("w4a8-int8", 4)),
        (_compressed({"num_bits": 4, "type": "int"}, input_activations={"num_bits": 8, "type": "float"}),
         Quantization("w4a8-fp8", 4)),
        ({"quant_method": "aqlm"}, Quantization("aqlm", 0)),
        ({"bits": True, "config_groups": []}, Quantization()),
    ],
)  # fmt: skip
def test_names_and_bits(stated: dict[str, Any], found: Quantization) -> None:
    assert quantization_of({"quantization_config": stated}) == found


def test_the_language_models_part_may_state_it() -> None:
    config = {"text_config": {"quantization_config": {"quant_method": "awq", "bits": 4}}}
    assert quantization_of(config).name == "awq"


def test_blocks() -> None:
    fp8 = {"quant_method": "fp8", "weight_block_size": [128, 64]}
    assert quantization_block({"quantization_config": fp8}) == 64
    assert quantization_block({"quantization_config": _compressed({"group_size": 32})}) == 32
    assert quantization_block({"quantization_config": {"group_size": -1}}) == 0


def _parameters(stated: dict[str, Any], *tensors: tuple[str, str, tuple[int, ...]]) -> int:
    entries = tuple(TensorInfo(name, dtype, shape, 0, 0) for name, dtype, shape in tensors)
    return model_facts({"quantization_config": stated}, [Header(entries, 0)]).parameters


@pytest.mark.parametrize(
    ("name", "dtype", "found"),
    [
        ("model.layers.0.mlp.experts.7.down_proj.weight", "F8_E4M3", True),
        ("model.layers.0.mlp.experts.7.down_proj.weight_packed", "I32", True),
        ("model.layers.0.mlp.experts.gate_up_proj_blocks", "U8", True),
        ("model.layers.0.mlp.experts.7.down_proj.weight", "I8", True),
        ("model.layers.0.mlp.experts.7.down_proj.weight", "BF16", False),
        ("model.layers.0.mlp.shared_experts.down_proj.weight", "F8_E4M3", False),
        ("model.layers.0.mlp.down_proj.weight", "I8", False),
    ],
)
def test_a_mixture_with_quantized_experts_is_known(name: str, dtype: str, found: bool) -> None:
    head = TensorInfo("lm_head.weight", "BF16", (32, 32), 0, 0)
    tensors = (TensorInfo(name, dtype, (32, 32), 0, 0), head)
    facts = model_facts({}, [Header(tensors, 0)])
    assert facts.quantized_experts is found
    record = replace(small_record(), facts=facts)
    assert Record.parse(record.to_bytes()).facts.quantized_experts is found


@pytest.mark.parametrize(
    ("config", "each"),
    [({}, 2), ({"expert_dtype": "fp4"}, 2), ({"expert_dtype": "fp8"}, 1), ({"model_type": "deepseek_v3"}, 1)],
)  # fmt: skip
def test_experts_may_be_packed_more_densely_than_the_rest(
    config: dict[str, Any], each: int
) -> None:
    fp8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    stated = {"model_type": "deepseek_v4", "quantization_config": fp8, **config}
    quantization = quantization_of(stated)
    assert quantization.name == "fp8-block"
    assert quantization.values_per_element("layers.0.ffn.experts.7.w1.weight", "I8") == each
    assert quantization.values_per_element("layers.0.ffn.shared_experts.w1.weight", "F8_E4M3") == 1


def test_packed_tensors_count_their_parameters() -> None:
    awq = {"quant_method": "awq", "bits": 4}
    assert _parameters(awq, ("a.qweight", "I32", (64, 8)), ("a.scales", "F16", (1, 64))) == 64 * 64
    mxfp4 = {"quant_method": "mxfp4"}
    assert (
        _parameters(
            mxfp4, ("experts.w_blocks", "U8", (4, 2, 16)), ("experts.w_scales", "U8", (4, 2))
        )
        == 4 * 2 * 32
    )
    nvfp4 = {"quant_algo": "NVFP4"}
    assert _parameters(
        nvfp4, ("a.weight", "U8", (8, 8)), ("a.weight_scale", "F8_E4M3", (8, 1)),
        ("a.weight_scale_2", "F32", ()),
    ) == 128  # fmt: skip
    bits = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    assert _parameters(
        bits, ("a.weight", "U8", (32, 1)), ("a.weight.absmax", "U8", (1,)),
        ("a.weight.quant_state.bitsandbytes__nf4", "U8", (90,)),
    ) == 64  # fmt: skip


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [("LlamaForCausalLM", False), ("BertModel", True), ("XLMRobertaForSequenceClassification", True),
     ("GPT2LMHeadModel", False), ("ChatGLMModel", False), ("JinaForRanking", True), ("", False)],
)  # fmt: skip
def test_models_that_pool(architecture: str, expected: bool) -> None:
    assert pools(architecture) is expected


def test_a_sentence_transformer_pools_whatever_its_architecture() -> None:
    modules = [{"type": "sentence_transformers.models.Pooling"}]
    assert pools("Qwen3ForCausalLM", modules)
    assert not pools("Qwen3ForCausalLM", [{"type": 1}, "x"])
