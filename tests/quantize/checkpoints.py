"""Small random checkpoints, one per architecture rule, written without any model library."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from modelimage.safetensors import build_header
from tests.quantize import reference

Shapes = dict[str, tuple[int, ...]]

HIDDEN, INNER, VOCAB, LAYERS, HEADS, KV_HEADS = 128, 256, 96, 2, 4, 2
SLICE = HIDDEN // HEADS


@dataclass(frozen=True)
class Model:
    """A checkpoint to write: its config, its tensors, and what must be quantized (module -> shape)."""

    config: Mapping[str, Any]
    shapes: Shapes
    matrices: Mapping[str, tuple[int, int]] = field(default_factory=dict)


def _config(architecture: str, model_type: str, **more: Any) -> dict[str, Any]:
    return {
        "architectures": [architecture], "model_type": model_type, "hidden_size": HIDDEN,
        "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "vocab_size": VOCAB, "max_position_embeddings": 512,
        "head_dim": SLICE, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, **more,
    }  # fmt: skip


def _frame(tied: bool = False) -> Shapes:
    shapes: Shapes = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,)}
    return shapes if tied else shapes | {"lm_head.weight": (VOCAB, HIDDEN)}


def _attention(layer: str, hidden: int = HIDDEN) -> Shapes:
    queries, keys = HEADS * SLICE, KV_HEADS * SLICE
    return {
        f"{layer}.self_attn.q_proj": (queries, hidden), f"{layer}.self_attn.k_proj": (keys, hidden),
        f"{layer}.self_attn.v_proj": (keys, hidden), f"{layer}.self_attn.o_proj": (hidden, queries),
    }  # fmt: skip


def _mlp(where: str, inner: int = INNER) -> Shapes:
    return {
        f"{where}.gate_proj": (inner, HIDDEN), f"{where}.up_proj": (inner, HIDDEN),
        f"{where}.down_proj": (HIDDEN, inner),
    }  # fmt: skip


def _norms(layer: str) -> Shapes:
    return {
        f"{layer}.input_layernorm.weight": (HIDDEN,),
        f"{layer}.post_attention_layernorm.weight": (HIDDEN,),
    }


def _assembled(config: dict[str, Any], matrices: Shapes, rest: Shapes) -> Model:
    shapes = rest | {f"{name}.weight": shape for name, shape in matrices.items()}
    return Model(config, shapes, {name: (s[0], s[1]) for name, s in matrices.items()})


def llama(architecture: str = "LlamaForCausalLM", model_type: str = "llama") -> Model:
    """Llama, Mistral, Qwen3 (with norms on queries and keys)."""
    matrices: Shapes = {}
    rest = _frame()
    for n in range(LAYERS):
        layer = f"model.layers.{n}"
        matrices |= _attention(layer) | _mlp(f"{layer}.mlp")
        rest |= _norms(layer)
        if model_type == "qwen3":
            rest |= {f"{layer}.self_attn.{x}_norm.weight": (SLICE,) for x in "qk"}
    return _assembled(_config(architecture, model_type), matrices, rest)


def qwen2() -> Model:
    """Biases on query, key and value."""
    model = llama("Qwen2ForCausalLM", "qwen2")
    biases = {
        f"{name}.bias": (shape[0],)
        for name, shape in model.matrices.items()
        if name.endswith(("q_proj", "k_proj", "v_proj"))
    }
    return Model(model.config, {**model.shapes, **biases}, model.matrices)


def gemma() -> Model:
    """Tied embeddings: no output head in the files."""
    matrices: Shapes = {}
    rest = _frame(tied=True)
    for n in range(LAYERS):
        layer = f"model.layers.{n}"
        matrices |= _attention(layer) | _mlp(f"{layer}.mlp")
        rest |= _norms(layer) | {f"{layer}.pre_feedforward_layernorm.weight": (HIDDEN,)}
    config = _config("GemmaForCausalLM", "gemma", tie_word_embeddings=True)
    return _assembled(config, matrices, rest)


def phi3() -> Model:
    """Query, key and value in one matrix; gate and up in one."""
    matrices: Shapes = {}
    rest = _frame()
    for n in range(LAYERS):
        layer = f"model.layers.{n}"
        matrices |= {
            f"{layer}.self_attn.qkv_proj": ((HEADS + 2 * KV_HEADS) * SLICE, HIDDEN),
            f"{layer}.self_attn.o_proj": (HIDDEN, HEADS * SLICE),
            f"{layer}.mlp.gate_up_proj": (2 * INNER, HIDDEN),
            f"{layer}.mlp.down_proj": (HIDDEN, INNER),
        }
        rest |= _norms(layer)
    return _assembled(_config("Phi3ForCausalLM", "phi3"), matrices, rest)


def mixtral(experts: int = 4) -> Model:
    """Experts one by one, with a router."""
    matrices: Shapes = {}
    rest = _frame()
    for n in range(LAYERS):
        layer = f"model.layers.{n}"
        matrices |= _attention(layer)
        for e in range(experts):
            where = f"{layer}.block_sparse_moe.experts.{e}"
            matrices |= {f"{where}.w1": (INNER, HIDDEN), f"{where}.w3": (INNER, HIDDEN)}
            matrices |= {f"{where}.w2": (HIDDEN, INNER)}
        rest |= _norms(layer) | {f"{layer}.block_sparse_moe.gate.weight": (experts, HIDDEN)}
    config = _config(
        "MixtralForCausalLM", "mixtral", num_local_experts=experts, num_experts_per_tok=2
    )
    return _assembled(config, matrices, rest)


def fused_experts(model_type: str = "qwen3_moe", experts: int = 4) -> Model:
    """All experts of a layer in one 3-D tensor; transposed for llama4."""
    transposed = model_type == "llama4"
    matrices: Shapes = {}
    rest = _frame()
    for n in range(LAYERS):
        layer = f"model.layers.{n}"
        matrices |= _attention(layer)
        up, down = (experts, 2 * INNER, HIDDEN), (experts, HIDDEN, INNER)
        rest[f"{layer}.mlp.experts.gate_up_proj"] = _swap(up) if transposed else up
        rest[f"{layer}.mlp.experts.down_proj"] = _swap(down) if transposed else down
        rest |= _norms(layer) | {f"{layer}.mlp.gate.weight": (experts, HIDDEN)}
    config = _config("MoeForCausalLM", model_type, num_experts=experts, num_experts_per_tok=2)
    model = _assembled(config, matrices, rest)
    split = {
        name: shape
        for n in range(LAYERS)
        for e in range(experts)
        for name, shape in _mlp(f"model.layers.{n}.mlp.experts.{e}").items()
    }
    return Model(model.config, model.shapes, {**model.matrices, **split})  # type: ignore[dict-item]


def multimodal() -> Model:
    """A language model behind a vision tower and a projector, both of which stay as they are."""
    inner = llama("LlavaForConditionalGeneration", "llava")
    tower = {
        "vision_tower.encoder.layers.0.self_attn.q_proj.weight": (64, 64),
        "vision_tower.patch_embedding.weight": (64, 3, 4, 4),
        "multi_modal_projector.linear_1.weight": (HIDDEN, 64),
    }
    return Model(
        {"architectures": inner.config["architectures"], "model_type": "llava",
         "text_config": inner.config},
        {**inner.shapes, **tower}, inner.matrices,
    )  # fmt: skip


def _swap(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    return shape[0], shape[2], shape[1]


def weights(model: Model, dtype: str = "BF16", seed: int = 7) -> dict[str, tuple[str, bytes]]:
    """Random values of a model's tensors: name -> dtype and bytes."""
    rng = np.random.default_rng(seed)
    out = {}
    for name, shape in model.shapes.items():
        values = rng.standard_normal(shape, np.float32) * np.float32(0.04)
        out[name] = (dtype, _encode(values, dtype))
    return out


def _encode(values: reference.Floats, dtype: str) -> bytes:
    if dtype == "BF16":
        return reference.to_bf16(values).tobytes()
    return values.astype({"F16": np.float16, "F32": np.float32}[dtype]).tobytes()


def write_file(path: Path, shapes: Shapes, data: Mapping[str, tuple[str, bytes]]) -> None:
    header = build_header({n: (data[n][0], s) for n, s in shapes.items()}, {"format": "pt"})
    path.write_bytes(header + b"".join(data[name][1] for name in shapes))


def write(
    root: Path, model: Model, *, dtype: str = "BF16", shards: int = 1
) -> dict[str, tuple[str, bytes]]:
    """Write a checkpoint directory, its tensors spread over `shards` files; the tensors' bytes."""
    root.mkdir(parents=True, exist_ok=True)
    data = weights(model, dtype)
    (root / "config.json").write_text(json.dumps(model.config, indent=2))
    (root / "tokenizer.json").write_text('{"version": "1.0"}')
    (root / "README.md").write_text("# random\n")
    names = list(model.shapes)
    if shards == 1:
        write_file(root / "model.safetensors", model.shapes, data)
        return data
    index: dict[str, str] = {}
    for n in range(shards):
        file = f"model-{n + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: model.shapes[name] for name in names[n::shards]}
        write_file(root / file, part, data)
        index |= dict.fromkeys(part, file)
    document = {"metadata": {"total_size": 0}, "weight_map": index}
    (root / "model.safetensors.index.json").write_text(json.dumps(document))
    return data


def source_matrix(
    model: Model, data: Mapping[str, tuple[str, bytes]], module: str
) -> reference.Floats:
    """A module's weight [out, in] as float32, split out of fused experts where it must be."""
    direct = f"{module}.weight"
    if direct in data:
        return reference.decode(data[direct][1], data[direct][0], model.shapes[direct])
    head, _, projection = module.rpartition(".")
    layer, _, expert = head.rpartition(".")
    fused = "down_proj" if projection == "down_proj" else "gate_up_proj"
    name = f"{layer}.{fused}"
    stack = reference.decode(data[name][1], data[name][0], model.shapes[name])[int(expert)]
    if model.config["model_type"] == "llama4":
        stack = stack.T
    if projection == "down_proj":
        return np.ascontiguousarray(stack)
    half = stack.shape[0] // 2
    return np.ascontiguousarray(stack[:half] if projection == "gate_proj" else stack[half:])
