"""Memory estimates: counted by hand for published configs."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from modelimage.gpu_memory import estimate
from modelimage.kv_cache import kv_cache_bytes_per_token


@dataclass(frozen=True)
class Entry:
    name: str
    dtype: str
    shape: tuple[int, ...]


SMOLLM2 = {
    "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
    "intermediate_size": 1536, "vocab_size": 49152, "max_position_embeddings": 8192,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (SMOLLM2, 2 * 30 * 3 * 64 * 2),
        # Llama-3.1-8B: 128 KiB a token is the figure its users know.
        ({"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
          "num_key_value_heads": 8}, 131072),
        # Qwen3: head_dim stated and unequal to hidden / heads.
        ({"hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16,
          "num_key_value_heads": 8, "head_dim": 128}, 2 * 28 * 8 * 128 * 2),
        ({"n_embd": 768, "n_layer": 12, "n_head": 12}, 2 * 12 * 768 * 2),
        # DeepSeek-V3: one latent of 512 and a rotary key of 64 per layer.
        ({"num_hidden_layers": 61, "kv_lora_rank": 512, "qk_rope_head_dim": 64}, 61 * 576 * 2),
        ({"hidden_size": 4544, "num_hidden_layers": 32, "num_attention_heads": 71,
          "multi_query": True}, 2 * 32 * 1 * 64 * 2),
        ({"text_config": SMOLLM2, "vision_config": {"hidden_size": 9}}, 2 * 30 * 3 * 64 * 2),
        ({**SMOLLM2, "layer_types": ["linear_attention", "full_attention"] * 3},
         2 * 3 * 3 * 64 * 2),
        ({"model_type": "unet"}, None),
        ({"model_type": "bert"}, 0),
    ],
)  # fmt: skip
def test_kv_cache_per_token(config: dict[str, object], expected: int | None) -> None:
    assert kv_cache_bytes_per_token(config) == expected


def test_packed_weights_count_their_parameters_and_scales_count_none() -> None:
    quantized = SMOLLM2 | {
        "quantization_config": {"config_groups": {"group_0": {"weights": {"num_bits": 4}}}}
    }
    entries = [
        Entry("a.weight_packed", "I32", (64, 16)),
        Entry("a.weight_scale", "BF16", (64, 1)),
        Entry("a.weight_shape", "I64", (2,)),
        Entry("norm.weight", "BF16", (128,)),
    ]
    found = estimate(quantized, entries)
    assert found.parameters == 64 * 128 + 128
    assert found.weight_bytes == 64 * 16 * 4 + 64 * 2 + 16 + 256


def test_gptq_bits_are_read_from_its_own_key() -> None:
    config = SMOLLM2 | {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    assert estimate(config, [Entry("a.qweight", "I32", (16, 64))]).parameters == 128 * 64


def test_the_parts_add_up() -> None:
    found = estimate(SMOLLM2, [Entry("w", "BF16", (1000, 1000))])
    assert found.context_length == 8192
    assert found.activation_bytes == 2048 * (4 * 576 + 3 * 1536) * 2 + 256 * 49152 * 8
    assert found.gpu_memory_bytes() == (
        2_000_000 + found.activation_bytes + (1 << 30) + 8192 * found.kv_cache_bytes_per_token
    )


def test_experts_widen_the_activations() -> None:
    moe = SMOLLM2 | {"num_experts_per_tok": 8, "moe_intermediate_size": 768}
    assert estimate(moe, []).activation_bytes - estimate(SMOLLM2, []).activation_bytes == (
        2048 * 3 * (8 * 768 - 1536) * 2
    )


def test_a_cache_of_unknown_size_is_reserved() -> None:
    entry = Entry("w", "BF16", (1000, 1000))
    unknown = estimate({"model_type": "unet"}, [entry])
    assert unknown.cache_reserve_bytes == 2_000_000 // 5
    assert (
        unknown.gpu_memory_bytes()
        == estimate({"model_type": "bert"}, [entry]).gpu_memory_bytes()
        - (estimate({"model_type": "bert"}, []).activation_bytes - unknown.activation_bytes)
        + unknown.cache_reserve_bytes
    )
