"""Models in Mistral's own format: `params.json` says what a `config.json` says of others."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest

from modelimage.kv_cache import kv_cache_bytes_per_token
from modelimage.mistral_config import is_native, native_config
from modelimage.model_config import context_length
from modelimage.model_facts import file_facts
from modelimage.quantization import quantization_of
from modelimage.ranges import ByteRange
from tests.builder.checkpoints import weights

BASE: Final[dict[str, Any]] = {
    "dim": 4096, "n_layers": 32, "head_dim": 128, "hidden_dim": 14336, "n_heads": 32, "n_kv_heads": 8,
    "vocab_size": 32768, "norm_eps": 1e-5, "rope_theta": 1e6,
}  # fmt: skip
LATENT: Final = BASE | {
    "n_layers": 36, "n_kv_heads": 32, "kv_lora_rank": 256, "qk_rope_head_dim": 64, "qk_nope_head_dim": 64,
    "v_head_dim": 128, "max_position_embeddings": 1 << 20, "moe": {"num_experts": 128, "num_shared_experts": 1},
    "yarn": {"factor": 128, "original_max_position_embeddings": 8192},
}  # fmt: skip
AUDIO: Final = {"multimodal": {"whisper_model_args": {"encoder_args": {"dim": 1280}}}}


@pytest.mark.parametrize(
    ("parameters", "architecture", "cache", "context"),
    [
        (BASE, "MistralForCausalLM", 2 * 32 * 8 * 128 * 2, 128_000),
        (BASE | {"moe": {"num_experts": 8, "num_experts_per_tok": 2}}, "MixtralForCausalLM", 131072, 128_000),
        (BASE | {"vision_encoder": {"hidden_size": 1024}}, "PixtralForConditionalGeneration", 131072, 128_000),
        (BASE | AUDIO | {"max_position_embeddings": 32768}, "VoxtralForConditionalGeneration", 131072, 32768),
        (LATENT, "MistralLarge3ForCausalLM", 36 * 320 * 2, 1 << 20),
        (BASE | {"model_type": "mamba"}, "Mamba2ForCausalLM", 0, 128_000),
    ],
)  # fmt: skip
def test_parameters_are_read_as_vllm_reads_them(
    parameters: dict[str, Any], architecture: str, cache: int, context: int
) -> None:
    config = native_config(parameters, {})
    assert config["architectures"] == [architecture]
    assert (kv_cache_bytes_per_token(config) or 0) == cache
    assert context_length(config) == context


def test_a_config_beside_states_what_is_left_out() -> None:
    assert context_length(native_config(BASE, {"max_position_embeddings": 32768})) == 32768
    nested = {"text_config": {"max_position_embeddings": 65536}}
    assert context_length(native_config(BASE, nested)) == 65536


@pytest.mark.parametrize(
    ("stated", "name"),
    [
        ({"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"}, "fp8"),
        ({"quant_method": "compressed-tensors",
          "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "float", "group_size": 16}}}}, "nvfp4"),
        ({}, ""),
        ("fp8", ""),
    ],
)  # fmt: skip
def test_the_quantization_is_found(stated: object, name: str) -> None:
    assert quantization_of(native_config(BASE | {"quantization": stated}, {})).name == name


@pytest.mark.parametrize(
    ("paths", "native"),
    [
        (["params.json", "consolidated.safetensors"], True),
        (["params.json", "config.json", "consolidated-00001-of-00002.safetensors"], True),
        (["params.json", "model.safetensors"], False),
        (["params.json", "original/consolidated.safetensors"], False),
        (["config.json", "consolidated.safetensors"], False),
    ],
)
def test_where_vllm_takes_the_format(paths: list[str], native: bool) -> None:
    assert is_native(paths) is native


@pytest.mark.parametrize("stated", [BASE, BASE | {"moe": 3, "yarn": [], "multimodal": "x"}, []])
def test_facts_of_files(stated: object) -> None:
    files = {
        "params.json": json.dumps(stated).encode(),
        "consolidated.safetensors": weights({"w": (4,)}),
    }

    def read(path: str, wanted: ByteRange) -> bytes:
        return files[path][wanted.start : wanted.stop]

    facts = file_facts({path: len(data) for path, data in files.items()}, read)
    assert facts.kv_heads == (8 if stated else 0)
    assert facts.architecture == ("MistralForCausalLM" if stated else "")
