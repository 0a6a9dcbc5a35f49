"""Estimates a model's GPU memory from `config.json` and the safetensors headers alone.

The controller uses these numbers to pick the variant that fits a GPU, long before anything is loaded:

    weights      bytes of all tensors
    kv cache     per token, as `modelimage.kv_cache` derives it; 20% of the weights if it can't
    activations  BATCH_TOKENS x (4 x hidden + 3 x widest inner) x 2 bytes
                 + SEQUENCES x vocabulary x 8 bytes
    runtime      RUNTIME_BYTES for the driver's context, kernels and captured graphs

`widest inner` is the number of values per token inside a block: query, key and value together, or the MLP's inner
size times the experts per token. BATCH_TOKENS and SEQUENCES are vLLM's defaults for online serving.

Pure: takes parsed documents, never opens a file, and must not depend on numpy or an engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final, Protocol

from modelimage.kv_cache import kv_cache_bytes_per_token
from modelimage.model_config import (
    ModelConfig,
    attention_heads,
    context_length,
    head_size,
    kv_heads,
    language_model,
)
from modelimage.quantization import Quantization, quantization_of
from modelimage.safetensors import DTYPE_BITS

BATCH_TOKENS: Final = 2048
SEQUENCES: Final = 256
RUNTIME_BYTES: Final = 1 << 30
# Tokens of context that a GPU must have memory for, unless the model's context is shorter.
DEFAULT_CONTEXT: Final = 8192

_HALF: Final = 2  # bytes of a bf16 or f16 value
_LOGIT: Final = 8  # logits in float32, and a second copy for sampling
_UNKNOWN_CACHE_DIVISOR: Final = 5  # of the weights: reserved for a KV cache of unknown size


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

    `kv_cache_bytes_per_token` is 0 if the model keeps no KV cache, or if its size isn't known: then
    `cache_reserve_bytes` are reserved for it. `context_length` is 0 if `config.json` doesn't state it.
    """

    parameters: int
    weight_bytes: int
    kv_cache_bytes_per_token: int
    activation_bytes: int
    runtime_bytes: int
    context_length: int
    cache_reserve_bytes: int = 0

    def gpu_memory_bytes(self) -> int:
        """Memory to serve a request that fills the model's context, or 8,192 tokens of it."""
        tokens = min(self.context_length or DEFAULT_CONTEXT, DEFAULT_CONTEXT)
        return (
            self.weight_bytes
            + self.activation_bytes
            + self.runtime_bytes
            + self.cache_reserve_bytes
            + tokens * self.kv_cache_bytes_per_token
        )


def estimate(config: Mapping[str, Any], tensors: Iterable[Tensor]) -> MemoryEstimate:
    """Estimate memory from a parsed `config.json` and the header entries of all weight files.

    Keys that neither the config nor its class states count as 0: an estimate is never a reason to refuse a model.
    """
    text = language_model(config)
    quantization = quantization_of(config)
    parameters = weight_bytes = 0
    for tensor in tensors:
        parameters += _parameters(tensor, quantization)
        # Rounded up per tensor: sub-byte dtypes such as F4 may end within a byte.
        weight_bytes += -(-prod(tensor.shape) * DTYPE_BITS.get(tensor.dtype, 16) // 8)
    cache = kv_cache_bytes_per_token(config)
    return MemoryEstimate(
        parameters=parameters,
        weight_bytes=weight_bytes,
        kv_cache_bytes_per_token=cache or 0,
        activation_bytes=_activation_bytes(text),
        runtime_bytes=RUNTIME_BYTES,
        context_length=context_length(config),
        cache_reserve_bytes=weight_bytes // _UNKNOWN_CACHE_DIVISOR if cache is None else 0,
    )


def _parameters(tensor: Tensor, quantization: Quantization) -> int:
    # Scales and zero points are storage, not parameters.
    if quantization.is_side(tensor.name):
        return 0
    return prod(tensor.shape) * quantization.values_per_element(tensor.name, tensor.dtype)


def _activation_bytes(text: ModelConfig) -> int:
    hidden = text.count("hidden_size")
    inner = text.count("intermediate_size") or 4 * hidden
    # A mixture computes several experts per token, each with its own inner activations.
    experts = text.count("num_experts_per_tok")
    if experts:
        inner = max(inner, experts * (text.count("moe_intermediate_size") or inner))
    attention = (attention_heads(text) + 2 * kv_heads(text)) * head_size(text)
    block = BATCH_TOKENS * (4 * hidden + 3 * max(inner, attention)) * _HALF
    return block + SEQUENCES * text.count("vocab_size") * _LOGIT
