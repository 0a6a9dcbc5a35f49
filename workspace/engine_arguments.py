"""Derives engine settings from a fit: concurrent requests, KV cache format, prefix caching.

Pure. The user's arguments win, and those about the KV cache enter the fit's arithmetic too.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from modelimage.gpu_memory import SEQUENCES
from modelimage.record import ModelFacts
from workspace import arguments
from workspace.fit import KV_FP8, KV_NATIVE
from workspace.schema import Engine

# Tokens of a common prompt and answer. More concurrent requests than the cache holds would preempt
# each other in vLLM, which then computes their tokens again.
_COMMON_TOKENS: Final = 512
_STEP: Final = 8
_FEWEST: Final = 4

# Models with a state beside, or instead of, a KV cache of every token: vLLM disables prefix caching
# for them or calls it experimental.
_STATEFUL: Final = (
    "mamba", "jamba", "bamba", "zamba", "rwkv", "plamo2", "falconh1", "nemotronh", "granitemoehybrid",
    "qwen3next", "kimilinear", "minimaxtext01", "minimaxm1", "lfm2", "whisper",
)  # fmt: skip


def sequences(kv_tokens: int | None) -> int | None:
    """Concurrent requests of one server, from its KV cache's capacity in tokens; None keeps the engine's default.

    Never above the batch that the record's memory assumes (256), so that plan and server agree.
    """
    if kv_tokens is None:
        return None
    held = kv_tokens // _COMMON_TOKENS
    return max(_FEWEST, min(SEQUENCES, held - held % _STEP))


def kv_dtype(engine: Engine, user: Iterable[str]) -> str | None:
    """The KV cache's format where it is already decided: by the user, or by engines other than vLLM."""
    if engine is not Engine.VLLM:
        return KV_NATIVE
    requested = arguments.value_of(user, "--kv-cache-dtype")
    if requested is None:
        return None
    return KV_FP8 if requested.startswith(KV_FP8) else KV_NATIVE


def caches_prefixes(facts: ModelFacts) -> bool:
    """Whether requests may share the computed prefix: only with a KV cache of every token."""
    name = facts.architecture.lower()
    return bool(facts.kv_cache_bytes_per_token) and not any(each in name for each in _STATEFUL)
