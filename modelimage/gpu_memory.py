"""Estimates a model's GPU memory from `config.json` and the safetensors headers alone.

The controller uses these numbers to pick the variant that fits a GPU, long before anything is loaded:

    weights      bytes of all tensors
    kv cache     per token, 2 x attention layers x KV heads x head size x 2 bytes
                 (latent attention: layers x (latent rank + rotary size) x 2 bytes)
    activations  BATCH_TOKENS x (4 x hidden + 3 x widest inner) x 2 bytes
                 + SEQUENCES x vocabulary x 8 bytes
    runtime      RUNTIME_BYTES for the driver's context, kernels and captured graphs

`widest inner` is the number of values per token inside a block: query, key and value together, or the MLP's inner
size times the experts per token. BATCH_TOKENS and SEQUENCES are vLLM's defaults for online serving. As in vLLM, the
KV cache uses 16 bits whatever the precision of the weights; sliding windows are counted as full attention, so that
part is an upper bound.

Pure: takes parsed documents, never opens a file, and must not depend on numpy or an engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final, Protocol

from modelimage.safetensors import DTYPE_BITS

BATCH_TOKENS: Final = 2048
SEQUENCES: Final = 256
RUNTIME_BYTES: Final = 1 << 30
# Tokens of context that a GPU must have memory for, unless the model's context is shorter.
DEFAULT_CONTEXT: Final = 8192

_HALF: Final = 2  # bytes of a bf16 or f16 value
_LOGIT: Final = 8  # logits in float32, and a second copy for sampling
# Integers packed by compressed-tensors, and by GPTQ and AWQ.
_PACKED_SUFFIXES = (".weight_packed", ".qweight")
# Tensors that accompany quantized weights.
_SIDE_SUFFIXES = (
    ".weight_scale", ".weight_scale_inv", ".weight_shape", ".weight_zero_point", ".weight_g_idx",
    ".weight_global_scale", ".input_scale", ".input_global_scale", ".output_scale", ".scales",
    ".qzeros", ".g_idx", ".k_scale", ".v_scale",
)  # fmt: skip
_ATTENTION_LAYERS = frozenset(
    {"full_attention", "sliding_attention", "chunked_attention", "attention"}
)


class Tensor(Protocol):
    """One entry of a safetensors header: `dtype` in the format's spelling, `shape` in elements."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> Sequence[int]: ...


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Memory to serve one variant, in bytes except for `parameters` and `context_length` (tokens).

    `kv_cache_bytes_per_token` and `context_length` are 0 if `config.json` doesn't state them.
    """

    parameters: int
    weight_bytes: int
    kv_cache_bytes_per_token: int
    activation_bytes: int
    runtime_bytes: int
    context_length: int

    def gpu_memory_bytes(self, context_tokens: int | None = None) -> int:
        """Memory to serve a request of `context_tokens`; default: the model's context, at most 8,192."""
        tokens = context_tokens
        if tokens is None:
            tokens = min(self.context_length or DEFAULT_CONTEXT, DEFAULT_CONTEXT)
        return (
            self.weight_bytes
            + self.activation_bytes
            + self.runtime_bytes
            + tokens * self.kv_cache_bytes_per_token
        )


def estimate(config: Mapping[str, Any], tensors: Iterable[Tensor]) -> MemoryEstimate:
    """Estimate memory from a parsed `config.json` and the header entries of all weight files.

    Missing config keys count as 0: an estimate is never a reason to refuse a model.
    """
    text = text_config(config)
    bits = quantized_bits(config)
    parameters = weight_bytes = 0
    for tensor in tensors:
        parameters += _parameters(tensor, bits)
        # Rounded up per tensor: sub-byte dtypes such as F4 may end within a byte.
        weight_bytes += -(-prod(tensor.shape) * DTYPE_BITS.get(tensor.dtype, 16) // 8)
    return MemoryEstimate(
        parameters=parameters,
        weight_bytes=weight_bytes,
        kv_cache_bytes_per_token=kv_cache_bytes_per_token(config),
        activation_bytes=_activation_bytes(text),
        runtime_bytes=RUNTIME_BYTES,
        context_length=_first(
            text, "max_position_embeddings", "n_positions", "max_seq_len", "seq_length"
        ),
    )


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's part of a config; multimodal checkpoints nest it."""
    for key in ("text_config", "llm_config", "language_config"):
        nested = config.get(key)
        if isinstance(nested, Mapping):
            return nested
    # Qwen's omni models nest the language model in a `thinker`.
    thinker = config.get("thinker_config")
    return text_config(thinker) if isinstance(thinker, Mapping) else config


def quantized_bits(config: Mapping[str, Any]) -> int:
    """Bits per packed weight according to the config's `quantization_config`; 0 if there is none."""
    quantization = config.get("quantization_config")
    if not isinstance(quantization, Mapping):
        return 0
    # compressed-tensors states the bits per group of layers, GPTQ and AWQ at the top level.
    groups = quantization.get("config_groups")
    if isinstance(groups, Mapping):
        for group in groups.values():
            weights = group.get("weights") if isinstance(group, Mapping) else None
            if isinstance(weights, Mapping):
                return _first(weights, "num_bits")
    return _first(quantization, "bits", "w_bit")


def kv_cache_bytes_per_token(config: Mapping[str, Any]) -> int:
    """Bytes of KV cache per token over all layers; 0 if the config doesn't state the sizes."""
    text = text_config(config)
    layers = _attention_layers(text)
    # Latent attention (DeepSeek's MLA) caches one compressed vector per layer instead of keys and values.
    latent = _first(text, "kv_lora_rank")
    if latent:
        return layers * (latent + _first(text, "qk_rope_head_dim")) * _HALF
    return 2 * layers * _kv_heads(text) * _head_size(text) * _HALF


def _parameters(tensor: Tensor, bits: int) -> int:
    # Scales and zero points are storage, not parameters.
    if tensor.name.endswith(_SIDE_SUFFIXES):
        return 0
    elements = prod(tensor.shape)
    # Packed weights have several parameters in each 32-bit integer.
    if tensor.name.endswith(_PACKED_SUFFIXES) and bits and tensor.dtype in ("I32", "U32"):
        return elements * (32 // bits)
    return elements


def _attention_layers(text: Mapping[str, Any]) -> int:
    kinds = text.get("layer_types")
    # Hybrid models also have layers without a KV cache (linear attention, Mamba): count only attention layers.
    if isinstance(kinds, list) and kinds:
        return sum(kind in _ATTENTION_LAYERS for kind in kinds)
    return _first(text, "num_hidden_layers", "n_layer", "n_layers", "num_layers")


def _heads(text: Mapping[str, Any]) -> int:
    return _first(text, "num_attention_heads", "n_head", "n_heads")


def _kv_heads(text: Mapping[str, Any]) -> int:
    # Falcon's `multi_query` means one KV head, except in its newer architecture, which states num_kv_heads.
    if text.get("multi_query") is True and not text.get("new_decoder_architecture"):
        return _first(text, "multi_query_group_num") or 1
    return _first(text, "num_key_value_heads", "num_kv_heads", "n_head_kv") or _heads(text)


def _head_size(text: Mapping[str, Any]) -> int:
    stated = _first(text, "head_dim", "kv_channels", "attention_head_size")
    heads = _heads(text)
    return stated or (_hidden(text) // heads if heads else 0)


def _hidden(text: Mapping[str, Any]) -> int:
    return _first(text, "hidden_size", "n_embd", "d_model")


def _activation_bytes(text: Mapping[str, Any]) -> int:
    hidden = _hidden(text)
    inner = _first(text, "intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size") or 4 * hidden
    # A mixture computes several experts per token, each with its own inner activations.
    experts = _first(text, "num_experts_per_tok", "moe_top_k", "top_k_experts")
    if experts:
        inner = max(inner, experts * (_first(text, "moe_intermediate_size") or inner))
    attention = (_heads(text) + 2 * _kv_heads(text)) * _head_size(text)
    block = BATCH_TOKENS * (4 * hidden + 3 * max(inner, attention)) * _HALF
    return block + SEQUENCES * _first(text, "vocab_size") * _LOGIT


def _first(config: Mapping[str, Any], *keys: str) -> int:
    """The value of the first of `keys` with a positive integer, else 0."""
    for key in keys:
        value = config.get(key)
        # `type`, not isinstance: JSON's true would count as 1.
        if type(value) is int and value > 0:
            return value
    return 0
