"""Which tensors are quantized: rules on names and shapes, and their laws."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelimage.safetensors import DTYPE_BITS, TensorInfo
from quantize.architecture import TensorSelection, select
from quantize.errors import IncompatibleOptions, UnsupportedArchitecture
from quantize.formats import quantization_config
from quantize.schemes import (
    NUMERICS,
    Format,
    Method,
    QuantizationEngine,
    Scheme,
    resolve_engine,
    resolve_format,
    resolve_method,
)

CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 128}


def tensor(name: str, *shape: int, dtype: str = "BF16") -> TensorInfo:
    return TensorInfo(name, dtype, shape, 0, math.prod(shape) * DTYPE_BITS[dtype] // 8)


def chosen(
    *tensors: TensorInfo, scheme: Scheme = Scheme.INT4, config: Any = None, group: int | None = None
) -> TensorSelection:
    format_ = Format.INT_QUANTIZED if scheme is Scheme.INT8 else Format.PACK_QUANTIZED
    return select(
        config or CONFIG, tensors, numeric=NUMERICS[scheme], format_=format_, group_size=group
    )


PLAIN = tensor("model.layers.0.mlp.down_proj.weight", 128, 256)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("lm_head.weight", "output head"),
        ("model.embed_tokens.weight", "embedding"),
        ("transformer.wte.weight", "embedding"),
        ("model.layers.0.mlp.gate.weight", "router"),
        ("model.layers.0.block_sparse_moe.gate.weight", "router"),
        ("model.layers.0.feed_forward.router.weight", "router"),
        ("model.layers.0.mlp.shared_expert_gate.weight", "router"),
        ("vision_tower.encoder.layers.0.mlp.fc1.weight", "vision or audio tower"),
        ("model.visual.blocks.3.attn.qkv.weight", "vision or audio tower"),
        ("audio_tower.layers.1.fc2.weight", "vision or audio tower"),
        ("multi_modal_projector.linear_1.weight", "projector"),
        ("model.connector.modality_projection.proj.weight", "projector"),
        ("model.layers.0.mixer.conv1d.weight", "convolution"),
        ("model.layers.0.linear_attn.in_proj_qkvz.weight", "linear attention"),
        ("model.layers.0.self_attn.kv_norm.weight", "norm"),
        ("score.weight", "output head"),
    ],
)
def test_what_servers_never_quantize_stays(name: str, reason: str) -> None:
    found = chosen(PLAIN, tensor(name, 128, 128))
    assert found.kept == {name.removesuffix(".weight"): reason}
    assert list(found.matrices) == [PLAIN.name]


@pytest.mark.parametrize(
    "name", ["gate_proj", "gate_up_proj", "up_proj", "qkv_proj", "w1", "dense"]
)
def test_projections_are_quantized(name: str) -> None:
    assert (
        f"model.layers.0.mlp.{name}.weight"
        in chosen(tensor(f"model.layers.0.mlp.{name}.weight", 128, 128)).matrices
    )


@pytest.mark.parametrize(
    ("odd", "siblings"),
    [
        ("self_attn.k_proj", ["self_attn.q_proj", "self_attn.v_proj"]),
        ("mlp.up_proj", ["mlp.gate_proj"]),
        ("mlp.experts.1.w3", ["mlp.experts.1.w1", "mlp.experts.1.w2", "mlp.experts.0.w2"]),
    ],
)
def test_what_is_loaded_as_one_stays_as_one(odd: str, siblings: list[str]) -> None:
    """8-bit kernels refuse 40 rows; so everything fused with that matrix stays too, nothing else."""
    layer = "model.layers.0."
    found = chosen(
        PLAIN,
        tensor(f"{layer}{odd}.weight", 40, 128),
        *(tensor(f"{layer}{name}.weight", 128, 128) for name in siblings),
        scheme=Scheme.INT8,
    )
    assert list(found.matrices) == [PLAIN.name]
    assert found.kept.keys() == {layer + odd, *(layer + name for name in siblings)}
    assert all(found.kept[layer + name].startswith("loaded as one with") for name in siblings)


@given(
    columns=st.lists(
        st.sampled_from([32, 64, 96, 128, 192, 576, 1000, 1536]), min_size=1, max_size=6
    )
)
def test_the_group_is_the_largest_that_loses_no_matrix(columns: list[int]) -> None:
    """Law: every matrix that some group divides is divided by the one chosen, and no larger one does."""
    tensors = [tensor(f"a{n}.x.weight", 16, width) for n, width in enumerate(columns)]
    fitting = [width for width in columns if width % 32 == 0]
    if not fitting:
        with pytest.raises(IncompatibleOptions):
            chosen(*tensors)
        return
    found = chosen(*tensors)
    assert all(width % found.group == 0 for width in fitting)
    assert found.group == max(g for g in (32, 64, 128) if all(w % g == 0 for w in fitting))
    assert len(found.matrices) == len(fitting)


def test_experts_of_unknown_layout_are_refused() -> None:
    fused = tensor("model.layers.0.mlp.experts.down_proj", 4, 96, 64)
    with pytest.raises(UnsupportedArchitecture, match="layout of experts"):
        chosen(PLAIN, fused)


def test_interleaved_experts_are_refused_by_name() -> None:
    fused = tensor("model.layers.0.mlp.experts.gate_up_proj", 4, 128, 512)
    with pytest.raises(UnsupportedArchitecture, match="gpt-oss"):
        chosen(PLAIN, fused, config=CONFIG | {"model_type": "gpt_oss"})


def test_a_quantized_language_part_is_noticed() -> None:
    config = CONFIG | {"text_config": {"quantization_config": {"quant_method": "awq"}}}
    with pytest.raises(Exception, match="awq"):
        chosen(PLAIN, config=config)


PARSE = """
import json, sys
from compressed_tensors.quantization import QuantizationConfig
for document in json.load(sys.stdin):
    group = QuantizationConfig.model_validate(document).config_groups["group_0"]
    activations = group.input_activations
    print(group.weights.num_bits, group.weights.group_size, activations and activations.dynamic)
"""


@pytest.mark.vllm
@pytest.mark.slow
def test_the_announcement_is_what_the_loaders_parse() -> None:
    """Parsed by the code that servers run, in a process of its own, not by our idea of it."""
    cases = [
        (Scheme.INT4, Format.PACK_QUANTIZED, 64),
        (Scheme.INT8, Format.INT_QUANTIZED, 0),
        (Scheme.INT8_W8A16, Format.PACK_QUANTIZED, 0),
    ]
    documents = [quantization_config(s, f, group=g, ignored=["lm_head"]) for s, f, g in cases]
    parsed = subprocess.run(
        [sys.executable, "-c", PARSE], input=json.dumps(documents), text=True,
        stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    assert parsed.stdout.splitlines() == ["4 64 None", "8 None True", "8 None None"]


def test_an_empty_quantization_config_says_nothing() -> None:
    assert chosen(PLAIN, config=CONFIG | {"quantization_config": {}}).matrices


def test_auto_engine() -> None:
    assert (
        resolve_engine(Scheme.INT8, QuantizationEngine.AUTO, gptq_installed=True)
        is QuantizationEngine.RTN
    )
    assert (
        resolve_engine(Scheme.INT4, QuantizationEngine.AUTO, gptq_installed=True)
        is QuantizationEngine.GPTQ
    )
    assert (
        resolve_engine(Scheme.INT4, QuantizationEngine.AUTO, gptq_installed=False)
        is QuantizationEngine.RTN
    )
    assert (
        resolve_engine(Scheme.INT4, QuantizationEngine.AUTO_GPTQ, gptq_installed=False)
        is QuantizationEngine.GPTQ
    )


@pytest.mark.parametrize(
    "call",
    [
        lambda: resolve_engine(Scheme.INT8, QuantizationEngine.GPTQ, gptq_installed=True),
        lambda: resolve_format(Scheme.INT8, Format.GPTQ, QuantizationEngine.RTN),
        lambda: resolve_format(Scheme.INT4, Format.PACK_QUANTIZED, QuantizationEngine.GPTQ),
        lambda: resolve_method(Scheme.INT4, Method.SMOOTHQUANT, QuantizationEngine.LLM_COMPRESSOR),
        lambda: resolve_method(Scheme.INT4, Method.AWQ, QuantizationEngine.RTN),
    ],
)
def test_what_does_not_go_together_says_what_does(call: Any) -> None:
    with pytest.raises(IncompatibleOptions) as caught:
        call()
    assert caught.value.hint
