"""What an engine is told beside size and place: how many requests at once, the KV cache's format, prefix caching.

Pure. Whatever the user's arguments say wins; what they say of the KV cache enters the arithmetic of the fit too.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from modelimage.memory import SEQUENCES
from modelimage.record import ModelFacts
from workspace import arguments
from workspace.fit import KV_FP8, KV_NATIVE
from workspace.schema import Engine

# A prompt and an answer of common length. More requests than the cache holds at once would take turns, each thrown
# out and computed again by the others (vLLM's preemption).
_COMMON_TOKENS: Final = 512
_STEP: Final = 8
_FEWEST: Final = 4

# Models that keep a state beside, or instead of, a KV cache of every token: vLLM leaves prefix caching off for them
# or calls it experimental.
_STATEFUL: Final = (
    "mamba", "jamba", "bamba", "zamba", "rwkv", "plamo2", "falconh1", "nemotronh", "granitemoehybrid",
    "qwen3next", "kimilinear", "minimaxtext01", "minimaxm1", "lfm2", "whisper",
)  # fmt: skip


def sequences(kv_tokens: int | None) -> int | None:
    """How many requests one server runs at once, of the tokens that its KV cache holds; None leaves the engine's own.

    Never above the batch that the record's memory was counted for (256), so that plan and server agree.
    """
    if kv_tokens is None:
        return None
    held = kv_tokens // _COMMON_TOKENS
    return max(_FEWEST, min(SEQUENCES, held - held % _STEP))


def kv_dtype(engine: Engine, user: Iterable[str]) -> str | None:
    """The KV cache's format where it is decided already: by the user, or by an engine that is left to its own."""
    if engine is not Engine.VLLM:
        return KV_NATIVE
    asked = arguments.value_of(user, "--kv-cache-dtype")
    if asked is None:
        return None
    return KV_FP8 if asked.startswith(KV_FP8) else KV_NATIVE


def caches_prefixes(facts: ModelFacts) -> bool:
    """Whether requests that begin alike may share the computed beginning: with a KV cache of every token only."""
    name = facts.architecture.lower()
    return bool(facts.kv_cache_bytes_per_token) and not any(each in name for each in _STATEFUL)
