"""Writes random llama-shaped checkpoints of a given size, fast; the same arguments give the same bytes.

Benchmarks and tests pack, pull and quantize them where a trained model would be too small or too slow to download. The
weights are finite and of usual magnitudes (2^-7 to 2^-3), no two blocks are equal, and nothing compresses well.

    python -m tests.synthetic DIR GIGABYTES [SEED]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from weightyard.demo.safetensors_file import BF16_BYTES, Shape, bf16_size, write_bf16

SHARD_BYTES = 1 << 30
BLOCK_VALUES = 1 << 21  # 4 MiB: stays in the CPU cache between generating and writing
# Bits of a bfloat16: sign, mantissa and the exponent's two low bits are random; the rest is fixed
# to 2^-7 and up.
DRAWN_BITS = np.uint16(0x81FF)
FIXED_BITS = np.uint16(0x3C00)


@dataclass(frozen=True)
class Architecture:
    """A llama with `layers` layers; the other widths follow from `hidden`."""

    hidden: int
    layers: int
    vocabulary: int

    @property
    def intermediate(self) -> int:
        return self.hidden * 11 // 4

    @property
    def heads(self) -> int:
        return max(self.hidden // 64, 2)

    @property
    def kv_heads(self) -> int:
        return self.heads // 2


def architecture_of(total_bytes: int) -> Architecture:
    """The widest architecture of at least four layers with about `total_bytes`, to half a layer."""
    for hidden in (4096, 2048, 1024, 512, 256, 128, 64, 32):
        vocabulary = 32 * hidden
        one = bf16_size(tensor_shapes(Architecture(hidden, 1, vocabulary)))
        layer = bf16_size(tensor_shapes(Architecture(hidden, 2, vocabulary))) - one
        layers = round((total_bytes - one) / layer) + 1
        if layers >= 4:
            break
    return Architecture(hidden, max(layers, 1), vocabulary)


def tensor_shapes(architecture: Architecture) -> dict[str, Shape]:
    """All tensors of a LlamaForCausalLM with untied embeddings, in writing order."""
    hidden, intermediate = architecture.hidden, architecture.intermediate
    kv = hidden // architecture.heads * architecture.kv_heads
    layer = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (intermediate, hidden),
        "mlp.up_proj": (intermediate, hidden),
        "mlp.down_proj": (hidden, intermediate),
    }
    shapes: dict[str, Shape] = {"model.embed_tokens.weight": (architecture.vocabulary, hidden)}
    for index in range(architecture.layers):
        shapes |= {f"model.layers.{index}.{name}.weight": shape for name, shape in layer.items()}
    return shapes | {
        "model.norm.weight": (hidden,),
        "lm_head.weight": (architecture.vocabulary, hidden),
    }


def split(shapes: Mapping[str, Shape], shard_bytes: int) -> list[dict[str, Shape]]:
    """Distributes tensors over shards in order; a new shard starts where the next tensor would exceed `shard_bytes`."""
    shards: list[dict[str, Shape]] = [{}]
    for name, shape in shapes.items():
        if shards[-1] and bf16_size(shards[-1]) + bf16_size({name: shape}) > shard_bytes:
            shards.append({})
        shards[-1][name] = shape
    return shards


def synthetic_checkpoint(
    out: Path, *, total_bytes: int, seed: int = 0, shard_bytes: int = SHARD_BYTES
) -> Path:
    """Writes a checkpoint of about `total_bytes` into `out` (created when missing) and returns `out`.

    A tensor's values depend only on `seed` and the position of its name, not on the sharding.
    """
    out.mkdir(parents=True, exist_ok=True)
    architecture = architecture_of(total_bytes)
    shapes = tensor_shapes(architecture)
    positions = {name: position for position, name in enumerate(shapes)}
    shards = split(shapes, shard_bytes)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = (
            "model.safetensors"
            if len(shards) == 1
            else f"model-{number:05}-of-{len(shards):05}.safetensors"
        )
        weight_map |= dict.fromkeys(shard, file)
        write_bf16(out / file, shard, _values(shard, positions, seed))
    if len(shards) > 1:
        index = {"metadata": {"total_size": bf16_size(shapes)}, "weight_map": weight_map}
        _write_json(out / "model.safetensors.index.json", index)
    _write_json(out / "config.json", _config(architecture))
    _write_json(out / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})
    _write_json(out / "tokenizer.json", _tokenizer(architecture))
    _write_json(out / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    return out


def _values(
    shard: Mapping[str, Shape], positions: Mapping[str, int], seed: int
) -> Iterator[NDArray[np.uint16]]:
    for name, shape in shard.items():
        generator = np.random.SFC64([seed, positions[name]])
        left = bf16_size({name: shape}) // BF16_BYTES
        while left:
            count = min(left, BLOCK_VALUES)
            drawn = generator.random_raw(-(-count // 4)).view(np.uint16)[:count]
            drawn &= DRAWN_BITS
            drawn |= FIXED_BITS
            yield drawn
            left -= count


def _config(architecture: Architecture) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": architecture.hidden,
        "intermediate_size": architecture.intermediate,
        "max_position_embeddings": 2048,
        "model_type": "llama",
        "num_attention_heads": architecture.heads,
        "num_hidden_layers": architecture.layers,
        "num_key_value_heads": architecture.kv_heads,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": architecture.vocabulary,
    }


def _tokenizer(architecture: Architecture) -> dict[str, object]:
    """A tokenizer whose words are token numbers: enough to load, and to read a random model's output."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocabulary |= {f"token{i}": i for i in range(3, architecture.vocabulary)}
    return {
        "version": "1.0",
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    }


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def main(arguments: list[str]) -> int:
    """Writes the requested checkpoint and prints its path."""
    if len(arguments) not in {2, 3}:
        print("usage: python -m tests.synthetic DIR GIGABYTES [SEED]", file=sys.stderr)
        return 2
    out, size, seed = Path(arguments[0]), float(arguments[1]), int(*arguments[2:])
    print(synthetic_checkpoint(out, total_bytes=int(size * 1e9), seed=seed))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
