"""Derives engine settings from a fit: concurrent requests, KV cache format, prefix caching.

Pure. The user's arguments win, and those about the KV cache enter the fit's arithmetic too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

from modelimage.errors import InvalidInput
from modelimage.gpu_memory import SEQUENCES
from modelimage.model_config import context_length
from modelimage.record import ModelFacts
from workspace import arguments
from workspace.fit import KV_FP8, KV_NATIVE
from workspace.hardware import BFLOAT16_CAPABILITY, NOT_IN_FLOAT16, Gpu
from workspace.runtime_spec import Engine

# Tokens of a common prompt and answer. More concurrent requests than the cache holds would preempt
# each other in vLLM, which then computes their tokens again.
_COMMON_TOKENS: Final = 512
_STEP: Final = 8
LORA_RANKS: Final = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # vLLM's MaxLoRARanks
_ALLOW_LONG: Final = "VLLM_ALLOW_LONG_MAX_MODEL_LEN"
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


def lora_rank(ranks: Iterable[int]) -> int:
    """The least rank that vLLM can be set to and that admits all adapters. Raises InvalidInput above the greatest."""
    greatest = max(ranks, default=0)
    fitting = [rank for rank in LORA_RANKS if rank >= greatest]
    if not fitting:
        raise InvalidInput(
            f"an adapter has rank {greatest}; vLLM serves ranks up to {LORA_RANKS[-1]}",
            hint="Merge the adapter into the model's weights.",
        )
    return fitting[0] if greatest else 0


def served_facts(
    facts: ModelFacts, user: Iterable[str], environment: Mapping[str, str]
) -> ModelFacts:
    """The facts with the context that the user's arguments and environment give the model."""
    words = tuple(user)
    if environment.get(_ALLOW_LONG) == "1":
        # vLLM then takes any length, so no length is too long.
        return replace(facts, context_length=0)
    overrides = arguments.document_of(words, "--hf-overrides")
    nested = overrides.get("text_config")
    stated = {**overrides, **(nested if isinstance(nested, dict) else {})}
    base = {"max_position_embeddings": facts.context_length} if facts.context_length else {}
    length = context_length({**base, **stated}) if stated else 0
    return replace(facts, context_length=length) if length else facts


def check_dtype(facts: ModelFacts, gpu: Gpu | None, user: Iterable[str]) -> None:
    """Refuses a `--dtype` with which vLLM doesn't start. Raises InvalidInput."""
    dtype = (arguments.value_of(user, "--dtype") or "").lower()
    if dtype in ("half", "float16") and facts.model_type in NOT_IN_FLOAT16:
        raise InvalidInput(
            f"vLLM doesn't compute {facts.model_type} models in float16",
            hint="Leave --dtype out of spec.runtime.args.",
        )
    if dtype == "bfloat16" and gpu is not None and 0 < gpu.capability < BFLOAT16_CAPABILITY:
        raise InvalidInput(
            f"{gpu.name} can't compute in bfloat16", hint="Leave --dtype out of spec.runtime.args."
        )


def caches_prefixes(facts: ModelFacts) -> bool:
    """Whether requests may share the computed prefix: only with a KV cache of every token."""
    name = facts.architecture.lower()
    return bool(facts.kv_cache_bytes_per_token) and not any(each in name for each in _STATEFUL)
