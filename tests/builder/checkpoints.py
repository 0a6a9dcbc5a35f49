"""Tiny checkpoints for tests: real safetensors files, built in milliseconds, the same bytes every time."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from modelimage.safetensors import DTYPE_BITS, build_header

Shape = tuple[int, ...]

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 8,
    "intermediate_size": 16,
    "max_position_embeddings": 64,
    "model_type": "llama",
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "num_key_value_heads": 1,
    "vocab_size": 16,
}
TENSORS: Mapping[str, Shape] = {
    "model.embed_tokens.weight": (16, 8),
    "model.layers.0.self_attn.q_proj.weight": (8, 8),
    "model.layers.0.mlp.up_proj.weight": (16, 8),
    "model.norm.weight": (8,),
}
README = "---\nlicense: apache-2.0\n---\n# Tiny\n"


def pattern(size: int, seed: str) -> bytes:
    """`size` bytes that depend on `seed` only."""
    blocks = (hashlib.sha256(f"{seed} {i}".encode()).digest() for i in range(-(-size // 32)))
    return b"".join(blocks)[:size]


def weights(tensors: Mapping[str, Shape], dtype: str = "BF16") -> bytes:
    """A safetensors file that holds these tensors."""
    header = build_header(
        {name: (dtype, shape) for name, shape in tensors.items()}, {"format": "pt"}
    )
    bodies = (
        pattern(math.prod(shape) * DTYPE_BITS[dtype] // 8, name) for name, shape in tensors.items()
    )
    return header + b"".join(bodies)


def single(directory: Path) -> Path:
    """A checkpoint with one weight file."""
    files: dict[str, bytes] = {
        "config.json": json.dumps(CONFIG).encode(),
        "generation_config.json": b"{}",
        "model.safetensors": weights(TENSORS),
        "tokenizer.json": b'{"version": "1.0"}',
        "tokenizer_config.json": b"{}",
        "README.md": README.encode(),
    }
    return write(directory, files)


def sharded(directory: Path) -> Path:
    """A checkpoint with two shards and an index."""
    names = list(TENSORS)
    shards = {
        "model-00001-of-00002.safetensors": names[:2],
        "model-00002-of-00002.safetensors": names[2:],
    }
    files = {
        shard: weights({name: TENSORS[name] for name in held}) for shard, held in shards.items()
    }
    weight_map = {name: shard for shard, held in shards.items() for name in held}
    index = {"metadata": {}, "weight_map": weight_map}
    files["model.safetensors.index.json"] = json.dumps(index).encode()
    files["config.json"] = json.dumps(CONFIG).encode()
    files["tokenizer.json"] = b'{"version": "1.0"}'
    return write(directory, files)


QUANTIZABLE = {
    "model.embed_tokens.weight": (64, 128),
    **{f"model.layers.0.self_attn.{name}_proj.weight": (128, 128) for name in ("q", "k", "v", "o")},
    "model.layers.0.mlp.gate_proj.weight": (256, 128),
    "model.layers.0.mlp.up_proj.weight": (256, 128),
    "model.layers.0.mlp.down_proj.weight": (128, 256),
    "model.layers.0.input_layernorm.weight": (128,),
    "model.norm.weight": (128,),
    "lm_head.weight": (64, 128),
}


def quantizable(directory: Path) -> Path:
    """A checkpoint of one real-shaped layer with finite weights."""
    random = np.random.default_rng(7)
    header = build_header(
        {name: ("BF16", shape) for name, shape in QUANTIZABLE.items()}, {"format": "pt"}
    )
    # The upper half of a float32 is a bfloat16, rounded towards zero.
    bodies = (
        (random.standard_normal(shape, np.float32).view(np.uint32) >> 16).astype("<u2").tobytes()
        for shape in QUANTIZABLE.values()
    )
    directory.mkdir(parents=True)
    (directory / "model.safetensors").write_bytes(header + b"".join(bodies))
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 128,
        "intermediate_size": 256, "num_attention_heads": 2, "num_key_value_heads": 2,
        "num_hidden_layers": 1, "vocab_size": 64, "max_position_embeddings": 64,
    }  # fmt: skip
    return write(
        directory,
        {
            "config.json": json.dumps(config).encode(),
            "tokenizer.json": b"{}",
            "README.md": README.encode(),
            "extra/processor_config.json": pattern(20, "x").hex().encode(),
        },
    )


def write(directory: Path, files: Mapping[str, bytes]) -> Path:
    """Write files into a directory, which is made."""
    for name, data in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return directory
