"""Sentences about what a checkpoint's own documents say that serving it will lack. Pure.

Sources: vLLM's `lora/peft_helper.py` (what it refuses of an adapter) and its models that load parts from other
repositories (Ultravox; speculators name the model that they propose tokens for).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_HELD_BY_OTHERS: Final = ("text_model_id", "audio_model_id", "mm_vision_tower", "mm_audio_tower")
# Features of PEFT that change what an adapter computes, by their keys.
_REFUSED: Final[Mapping[str, str]] = {
    "use_dora": "DoRA", "lora_bias": "biases", "alora_invocation_tokens": "activated LoRA", "use_qalora": "QALoRA",
    "layer_replication": "replicated layers", "use_bdlora": "block-diagonal LoRA",
}  # fmt: skip
_SAVED: Final = frozenset({"classifier", "score"})
# Starts that leave the base's weights as they are; others, such as PiSSA, change them.
_STARTS: Final = frozenset({"gaussian", "eva", "orthogonal", "mica", "lora_ga"})


def other_repositories(config: Mapping[str, Any]) -> list[str]:
    """Sentences about parts of the model that an engine fetches from elsewhere."""
    held = {key: config.get(key) for key in _HELD_BY_OTHERS}
    return [
        f"config.json takes {key} from {value}, which isn't packed and which nodes may not reach"
        for key, value in held.items()
        if isinstance(value, str) and value
    ]


def adapter_warnings(stated: Mapping[str, Any]) -> list[str]:
    """Sentences about what vLLM refuses of an adapter, given its parsed `adapter_config.json`."""
    refused = [name for key, name in _REFUSED.items() if stated.get(key)]
    saved = stated.get("modules_to_save")
    modules = [str(each) for each in saved] if isinstance(saved, list) else []
    if more := [each for each in modules if each not in _SAVED]:
        refused.append(f"whole modules ({', '.join(more[:5])})")
    start = stated.get("init_lora_weights")
    # True and false choose PEFT's own start, and need no word.
    if isinstance(start, str) and start.lower() not in _STARTS:
        refused.append(f"weights that start with {start}")
    if not refused:
        return []
    return [
        f"vLLM refuses this adapter because of {', '.join(refused)}; merge it into its base model"
    ]
