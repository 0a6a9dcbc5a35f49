"""Configurations as published, read as vLLM's and transformers' own classes read them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, Final

import pytest

from modelimage import architectures, model_facts
from modelimage.kv_cache import kv_cache_bytes_per_token, split_kv_heads, tensor_parallel_sizes
from modelimage.model_config import attention_heads, context_length, language_model
from modelimage.quantization import LOADED_BY_VLLM, quantization_of
from modelimage.safetensors import Header, TensorInfo
from workspace import engine_arguments, hardware

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parent.parent
CONFIGS: Final[Mapping[str, Any]] = json.loads((HERE / "published_configs.json").read_text())

# Methods of checkpoints that others load.
# Our names that aren't vLLM's methods, and its classes for them.
SCHEMES: Final = {
    "int8": "CompressedTensorsW8A8Int8", "int8-w8a16": "CompressedTensorsWNA16", "int4": "CompressedTensorsWNA16",
    "w4a8-int8": "CompressedTensorsWNA8Int", "w4a8-fp8": "CompressedTensorsW4A8Fp8", "fp8-block": "fp8",
    "fp8-fbgemm": "fbgemm_fp8", "fp8-modelopt": "modelopt", "nvfp4": "CompressedTensorsW4A4Fp4",
}  # fmt: skip
OTHERS: Final = (
    "bitsandbytes",
    "hqq",
    "aqlm",
    "exl2",
    "exl3",
    "quanto",
    "eetq",
    "higgs",
    "vptq",
    "bitnet",
    "spqr",
)

# What differs from a plain reading of vLLM's answers, and why.
EXPLAINED: Final[Mapping[str, str]] = {
    "bert-base": "an encoder keeps no KV cache",
    "xlm-roberta-base": "an encoder keeps no KV cache; positions start behind the padding token's",
    "modernbert-base": "an encoder keeps no KV cache",
    "whisper-small": "the encoder's cache is added, shared by the tokens of an answer",
    "gemma-3n-e4b": "the last 15 layers share the cache of earlier ones",
    "deepseek-v3.2": "sparse attention caches an index",
    "nomic-embed-v1.5": "an encoder keeps no KV cache",
    "distilbert-base": "an encoder keeps no KV cache",
    "bge-m3": "an encoder keeps no KV cache; positions start behind the padding token's",
    "glm-5": "sparse attention caches an index",
    "kimi-linear-48b": "one layer of four has latent attention, the others a state",
    "gemma-4-e4b": "layers have different head sizes, and the last 18 share the cache of earlier ones",
    "minicpm3-4b": "keys are computed from a latent, but cached whole",
    "longcat-flash": "each layer has two attentions",
    "mimo-v2-flash": "layers with a sliding window have other heads, and values are smaller than keys",
    **dict.fromkeys(
        ("gte-qwen2-7b", "embeddinggemma-300m", "gte-reranker-modernbert"), "an encoder keeps no KV cache"
    ),
    "jina-reranker-v2": "an encoder keeps no KV cache; positions start behind the padding token's",
    "t5-base": "the encoder's cache is added, shared by the tokens of an answer",
    "bart-large-cnn": "the encoder's cache is added, shared by the tokens of an answer",
    "ultravox-v0.5-llama-8b": "its language model is in another repository",
    **dict.fromkeys(
        (
            "mimo-7b", "ring-2.5-1t", "ernie-4.5-vl-28b-a3b", "molmo-7b-d", "molmo2-8b", "minicpm-v-4.5", "ovis2.5-9b",
            "internvl2.5-8b", "internvl3.5-8b", "llama-nemotron-nano-vl-8b", "nemotron-nano-12b-v2-vl",
            "phi-4-multimodal", "phi-3.5-vision", "dots.ocr", "telechat2-35b", "orion-14b", "solar-pro", "plamo3-8b",
            "iquest-loopcoder-40b", "sarvam-105b", "internlm2-reward-7b", "nv-embed-v2", "llama-embed-nemotron-8b",
            "openelm-3b", "decilm-7b", "nemotron-3-puzzle",
            "nemotron-51b-nas", "minimax-text-01", "gte-multilingual-base", "internlm2-7b", "internlm3-8b",
            "baichuan2-7b", "qwen-7b", "exaone-3.5-7.8b", "minicpm-2b", "ling-mini-2", "plamo2-8b",
        ),
        "its class is remote code",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def answers() -> Mapping[str, Any]:
    done = subprocess.run(
        [sys.executable, str(HERE / "vllm_answers.py")],
        input=json.dumps(CONFIGS), capture_output=True, text=True, check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    # Libraries print to stdout while they are imported.
    found = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(found, dict)
    return found


@pytest.mark.torch
def test_heads_cache_and_context_are_vllms(answers: Mapping[str, Any]) -> None:
    assert len(CONFIGS) >= 190
    assert len({config["architectures"][0] for config in CONFIGS.values()}) >= 150
    different = {}
    for name, config in CONFIGS.items():
        theirs = answers["configs"][name]
        if "error" in theirs:
            different[name] = theirs["error"]
            continue
        values = theirs["head_size"] * (1 if theirs["latent"] else 2 * theirs["kv_heads"])
        expected = (theirs["heads"], theirs["context"], 2 * values * theirs["layers"])
        ours = (
            attention_heads(language_model(config)),
            context_length(config),
            kv_cache_bytes_per_token(config),
        )
        if ours != expected:
            different[name] = f"{ours}, not {expected}"
    assert different.keys() == EXPLAINED.keys(), different


@pytest.mark.torch
def test_tensor_parallel_sizes_pass_vllms_checks(answers: Mapping[str, Any]) -> None:
    for name, config in CONFIGS.items():
        theirs = answers["configs"][name]
        for size in tensor_parallel_sizes(config) if "error" not in theirs else ():
            assert theirs["heads"] % size == 0, name
            kept = theirs["kv_heads"]
            assert theirs["latent"] or kept % size == 0 or size % kept == 0, name


@pytest.mark.torch
def test_our_tables_are_vllms(answers: Mapping[str, Any]) -> None:
    theirs = answers["tables"]
    assert sorted(hardware.NOT_IN_FLOAT16) == theirs["not_in_float16"]
    assert list(engine_arguments.LORA_RANKS) == theirs["lora_ranks"]
    assert [name for name in theirs["pooling"] if not architectures.pools(name)] == []
    assert [name for name in theirs["generating"] if architectures.pools(name)] == []
    assert [name for name in theirs["drafts"] if not architectures.is_draft(name)] == []
    served = {*theirs["generating"], *theirs["pooling"]} - {*theirs["drafts"]}
    assert [name for name in served if architectures.is_draft(name)] == []
    assert sorted(LOADED_BY_VLLM - set(SCHEMES) - {*theirs["quantizations"]}) == []
    named = (
        quantization_of({"quantization_config": {"quant_method": each}}).name for each in OTHERS
    )
    assert not LOADED_BY_VLLM.intersection(named)
    assert not {*OTHERS}.intersection(theirs["quantizations"])


@pytest.mark.torch
def test_the_least_capabilities_are_vllms(answers: Mapping[str, Any]) -> None:
    theirs = answers["tables"]["capabilities"]
    assert len(theirs) > len(SCHEMES)
    named = {name: SCHEMES.get(name, name) for name in hardware.LEAST_CAPABILITY}
    assert {name: theirs[each] for name, each in named.items()} == dict(hardware.LEAST_CAPABILITY)


@pytest.mark.torch
def test_the_table_of_classes_is_current() -> None:
    """Fails after an update of vLLM or transformers and names the model types that changed."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "config_classes.py"), "--check"],
        capture_output=True, text=True, check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gemma3-4b-it", 2 * 34 * 4 * 256 * 2),  # heads are its class's defaults
        ("llava-1.5-7b", 2 * 32 * 32 * 128 * 2),
        ("qwen3-next-80b", 2 * 12 * 2 * 256 * 2),  # every fourth layer has attention
        ("jamba-v0.1", 2 * 4 * 8 * 128 * 2),
        ("nemotron-h-8b", 2 * 4 * 8 * 128 * 2),
        ("nemotron-51b-nas", 2 * 2 * 8 * 128 * 2),
        ("minimax-text-01", 2 * 2 * 8 * 128 * 2),
        ("deepseek-v3", 61 * 576 * 2),
        ("kimi-linear-48b", 7 * 576 * 2),
        ("longcat-flash", 2 * 28 * 576 * 2),
        ("glm-5", 78 * (576 * 2 + 128 + 4)),
        ("gemma-4-e4b", 2 * 2 * (20 * 2 * 256 + 4 * 2 * 512)),
        ("minicpm3-4b", 2 * 62 * 40 * 96 * 2),
        ("plamo2-8b", 2 * 16 * 4 * 128 * 2),  # every second layer has attention
        ("qwen-7b", 2 * 32 * 32 * 128 * 2),
        ("internlm2-7b", 2 * 32 * 8 * 128 * 2),
        ("exaone-3.5-7.8b", 2 * 32 * 8 * 128 * 2),
        ("ling-mini-2", 2 * 20 * 4 * 128 * 2),
        (
            "step-3.5-flash",
            2 * 45 * 8 * 128 * 2,
        ),  # 48 kinds are listed: 3 layers predict further tokens
        ("mimo-v2-flash", 2 * (9 * 4 + 39 * 8) * (192 + 128)),
        ("iquest-loopcoder-40b", 2 * 2 * 80 * 8 * 128 * 2),  # its layers are passed twice
        ("nemotron-3-puzzle", 2 * 2 * 2 * 128 * 2),
        ("nemotron-nano-12b-v2-vl", 2 * 6 * 8 * 128 * 2),
        ("ring-2.5-1t", 10 * 576 * 2),
        ("decilm-7b", 2 * 88 * 128 * 2),  # KV heads of each layer
        ("openelm-3b", 2 * 162 * 128 * 2),
        ("sarvam-105b", 32 * 576 * 2),
        ("deepseek-vl2-tiny", 2 * 12 * 10 * 128 * 2),
        ("internvl2.5-8b", 2 * 32 * 8 * 128 * 2),
        ("ovis2.5-9b", 2 * 36 * 8 * 128 * 2),
        ("telechat2-35b", 2 * 64 * 8 * 128 * 2),
        ("colqwen2-v1", 2 * 28 * 2 * 128 * 2),
        ("gte-qwen2-7b", 0),  # attention sees what follows
        ("embeddinggemma-300m", 0),
        ("llama-embed-nemotron-8b", 0),
        ("ultravox-v0.5-llama-8b", None),  # its language model is in another repository
        ("falcon-mamba-7b", 0),
        ("bert-base", 0),
    ],
)
def test_kv_cache_of_published_configs(name: str, expected: int | None) -> None:
    assert kv_cache_bytes_per_token(CONFIGS[name]) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("phi4-14b", (1, 2)),  # 40 heads, 10 KV heads: not 4, nor 5 because of the vocabulary
        ("falcon-7b", (1,)),
        ("qwen25-7b", (1, 2, 4)),
        ("gemma3-1b-it", (1, 2, 4)),
        ("mamba2-2.7b", (1, 2, 4, 8, 16)),  # 80 heads of its state
        ("falcon-mamba-7b", (1, 2, 4, 8, 16, 32, 64)),  # no heads: an inner size of 8,192
        ("nemotron-h-8b", (1, 2, 4, 8)),  # 8 groups of its state's inputs, which aren't copied
        ("falcon-h1-1.5b", (1, 2, 4, 8)),
        ("deepseek-v3", (1, 2, 4, 8, 16)),  # FP8 blocks of 128 in experts of 2,048
        (
            "step-3.5-flash",
            (1, 2, 4, 8, 16, 32),
        ),  # 64 heads, and 96 in layers with a sliding window
        ("ultravox-v0.5-llama-8b", ()),
    ],
)
def test_tensor_parallel_sizes(name: str, expected: tuple[int, ...]) -> None:
    assert tensor_parallel_sizes(CONFIGS[name]) == expected


def test_layers_of_unknown_kinds_count_as_attention() -> None:
    config = CONFIGS["llama31-8b"] | {"layer_types": ["some_new_attention"] * 16 + ["mamba"] * 16}
    assert kv_cache_bytes_per_token(config) == 2 * 16 * 8 * 128 * 2


def test_latent_attention_is_kept_by_each_gpu() -> None:
    assert split_kv_heads(CONFIGS["deepseek-v3"]) == 1
    assert split_kv_heads(CONFIGS["nemotron-51b-nas"]) == 8
    assert split_kv_heads(CONFIGS["mimo-v2-flash"]) == 4


def test_context_is_the_shortest_limit() -> None:
    bert = CONFIGS["bert-base"]
    assert context_length(bert, sentence_length=96) == 96
    assert context_length(bert, tokenizer_length=128) == 512
    absolute = bert | {"position_embedding_type": "absolute"}
    assert context_length(absolute, tokenizer_length=128) == 128
    assert context_length(CONFIGS["xlm-roberta-base"]) == 512
    assert context_length(CONFIGS["vicuna-linear-rope"]) == 16384
    assert context_length(CONFIGS["command-r-35b"]) == 131072


@pytest.mark.parametrize("value", [True, -1, "8", [], {}, 1e9, None, ["x"], [{}], 1 << 40])
@pytest.mark.parametrize(
    "key",
    ["num_hidden_layers", "num_key_value_heads", "layer_types", "block_configs", "text_config",
     "rope_scaling", "attn_config", "model_type", "hybrid_override_pattern", "quantization_config",
     "attention_other_setting", "swa_num_key_value_heads", "hybrid_layer_pattern", "text_model_id", "architectures",
     "is_causal"],
)  # fmt: skip
def test_any_type_of_value_is_read(key: str, value: object) -> None:
    config = {**CONFIGS["llama31-8b"], key: value}
    kv_cache_bytes_per_token(config)
    tensor_parallel_sizes(config)
    context_length(config)
    model_facts.model_facts(config, [])


def header(**shapes: tuple[int, ...]) -> Header:
    tensors = (
        TensorInfo(name, "BF16", shape, 0, 2 * prod(shape)) for name, shape in shapes.items()
    )
    return Header(tuple(tensors), 8)


def test_the_rank_is_that_of_adapters_alone() -> None:
    adapter = header(
        **{"x.q_proj.lora_A.weight": (32, 8), "x.v_proj.lora_A.weight": (64, 8), "head": (4, 8)}
    )
    base = header(**{"model.embed_tokens.weight": (16, 8)})
    ranks = [
        model_facts.model_facts({}, headers).lora_rank
        for headers in ([adapter], [adapter, adapter], [base, adapter], [base], [])
    ]
    assert ranks == [64, 64, 0, 0, 0]
    phi = {"architectures": ["Phi4MMForCausalLM"]}
    assert model_facts.model_facts(phi, [base, adapter]).lora_rank == 64
    assert model_facts.model_facts(phi, [base]).lora_rank == 0


def test_adapters_that_a_model_brings_are_found_by_their_folders() -> None:
    files = [
        f"{folder}{name}"
        for folder in ("", "vision-lora/", "speech-lora/")
        for name in ("adapter_config.json", "adapter_model.safetensors")
    ]
    some = ["half/adapter_config.json", *files]
    assert architectures.own_adapters("Phi4MMForCausalLM", some) == (
        "",
        "speech-lora",
        "vision-lora",
    )
    assert architectures.own_adapters("LlamaForCausalLM", some) == ()
