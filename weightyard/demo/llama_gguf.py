"""Converts a llama-architecture GGUF file into the files of a Hugging Face checkpoint.

Uses only the file's own contents: weights are dequantized to bfloat16; tokenizer and configuration come from the
metadata. Independent of where the file comes from and where the checkpoint goes. Verified once, tensor by tensor and
token by token, against transformers' conversion of the same file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, dequantize
from numpy.typing import NDArray

from weightyard.demo.safetensors_file import to_bf16, write_bf16

CONTROL_TOKEN = 3  # gguf's TokenType.CONTROL


def convert(gguf_path: Path, out: Path) -> None:
    """Writes weights, configuration, tokenizer and chat template of `gguf_path` into the directory `out`."""
    reader = GGUFReader(gguf_path)
    architecture = _Architecture.read(reader)
    _write_weights(reader, architecture, out / "model.safetensors")
    _write_json(out / "config.json", _config(architecture))
    _write_json(out / "generation_config.json", _GENERATION_CONFIG)
    _write_json(out / "tokenizer.json", _tokenizer(reader))
    _write_json(out / "tokenizer_config.json", _tokenizer_config(reader, architecture))
    (out / "chat_template.jinja").write_text(_value(reader, "tokenizer.chat_template"))


@dataclass(frozen=True)
class _Architecture:
    """The model's dimensions, for the tensors and for config.json."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    context: int
    vocabulary: int
    rope_theta: float
    norm_epsilon: float

    @classmethod
    def read(cls, reader: GGUFReader) -> _Architecture:
        def value(key: str) -> Any:
            return _value(reader, f"llama.{key}")

        return cls(
            layers=value("block_count"),
            hidden=value("embedding_length"),
            intermediate=value("feed_forward_length"),
            heads=value("attention.head_count"),
            kv_heads=value("attention.head_count_kv"),
            context=value("context_length"),
            vocabulary=value("vocab_size"),
            rope_theta=value("rope.freq_base"),
            # Stored as float32: its shortest decimal form is the intended number.
            norm_epsilon=float(str(np.float32(value("attention.layer_norm_rms_epsilon")))),
        )


def _value(reader: GGUFReader, key: str) -> Any:
    return reader.fields[key].contents()


_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
}


def checkpoint_name(gguf_name: str) -> str:
    """The name in transformers' LlamaForCausalLM of llama.cpp's tensor `gguf_name`."""
    if gguf_name in _TOP_NAMES:
        return _TOP_NAMES[gguf_name]
    _, layer, part, suffix = gguf_name.split(".")
    return f"model.layers.{layer}.{_LAYER_NAMES[part]}.{suffix}"


def unpermute(weights: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Reverses llama.cpp's reordering of a query or key projection: interleaved rotary pairs back to two halves.

    `weights` is [heads * head size, hidden]; see `LlamaModel.permute` in llama.cpp's convert_hf_to_gguf.py.
    """
    pairs = weights.shape[0] // heads // 2
    return weights.reshape(heads, pairs, 2, -1).swapaxes(1, 2).reshape(weights.shape)


def _write_weights(reader: GGUFReader, architecture: _Architecture, path: Path) -> None:
    sources = {checkpoint_name(tensor.name): tensor for tensor in reader.tensors}
    # In the order of names, so that one file always gives the same bytes.
    names = sorted(sources)
    permuted = {"q_proj": architecture.heads, "k_proj": architecture.kv_heads}

    # A generator, so that only one dequantized tensor is in memory at a time.
    def values() -> Iterator[NDArray[np.uint16]]:
        for name in names:
            tensor = sources[name]
            weights = dequantize(tensor.data, tensor.tensor_type)
            heads = permuted.get(name.split(".")[-2])
            yield to_bf16(unpermute(weights, heads) if heads else weights)

    # gguf lists dimensions from the fastest to the slowest.
    shapes = {name: tuple(int(n) for n in reversed(sources[name].shape)) for name in names}
    write_bf16(path, shapes, values())


_GENERATION_CONFIG = {
    "_from_model_config": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}


def _config(architecture: _Architecture) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "head_dim": architecture.hidden // architecture.heads,
        "hidden_act": "silu",
        "hidden_size": architecture.hidden,
        "initializer_range": 0.041666666666666664,
        "intermediate_size": architecture.intermediate,
        "max_position_embeddings": architecture.context,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": architecture.heads,
        "num_hidden_layers": architecture.layers,
        "num_key_value_heads": architecture.kv_heads,
        "pad_token_id": 2,
        "rms_norm_eps": architecture.norm_epsilon,
        "rope_scaling": None,
        "rope_theta": architecture.rope_theta,
        # The file has no `output.weight`: the embeddings are the output layer too.
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": architecture.vocabulary,
    }


def _special_tokens(reader: GGUFReader) -> list[tuple[int, str]]:
    tokens = _value(reader, "tokenizer.ggml.tokens")
    types = _value(reader, "tokenizer.ggml.token_type")
    return [
        (i, text)
        for i, (text, kind) in enumerate(zip(tokens, types, strict=True))
        if kind == CONTROL_TOKEN
    ]


_TOKEN_FLAGS = {
    "lstrip": False,
    "normalized": False,
    "rstrip": False,
    "single_word": False,
    "special": True,
}


def _tokenizer(reader: GGUFReader) -> dict[str, object]:
    """tokenizer.json: GPT-2's byte-level BPE with each digit as its own token (llama.cpp's `smollm`)."""
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": text, **_TOKEN_FLAGS} for i, text in _special_tokens(reader)
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {text: i for i, text in enumerate(_value(reader, "tokenizer.ggml.tokens"))},
            "merges": _value(reader, "tokenizer.ggml.merges"),
        },
    }


def _tokenizer_config(reader: GGUFReader, architecture: _Architecture) -> dict[str, object]:
    special = dict(_special_tokens(reader))

    def token(role: str) -> str:
        return special[_value(reader, f"tokenizer.ggml.{role}_token_id")]

    return {
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(i): {"content": text, **_TOKEN_FLAGS} for i, text in special.items()
        },
        "bos_token": token("bos"),
        "clean_up_tokenization_spaces": False,
        "eos_token": token("eos"),
        "model_max_length": architecture.context,
        "pad_token": token("padding"),
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": token("unknown"),
    }


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
