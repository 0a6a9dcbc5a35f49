"""Asks vLLM's and transformers' configuration classes about configs. Run as a program: JSON in, JSON out.

It is another process because importing vLLM takes long, sets up logging and warns. It needs no GPU.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_ATTENTION = {
    "full_attention", "sliding_attention", "chunked_attention", "attention", "hybrid",
}  # fmt: skip


def answer(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Heads, KV heads, head size, layers with attention, and context of one config, as vLLM derives them."""
    from vllm.config.model import _get_and_verify_max_len  # noqa: PLC0415 - slow, and only here
    from vllm.transformers_utils.config import get_config, get_hf_text_config  # noqa: PLC0415
    from vllm.transformers_utils.model_arch_config_convertor import (  # noqa: PLC0415
        MODEL_ARCH_CONFIG_CONVERTORS,
        ModelArchConfigConvertorBase,
    )

    (folder / "config.json").write_text(json.dumps(config))
    whole = get_config(str(folder), trust_remote_code=False)
    text = get_hf_text_config(whole)
    kind = MODEL_ARCH_CONFIG_CONVERTORS.get(whole.model_type, ModelArchConfigConvertorBase)
    found = kind(whole, text).convert()
    # Far above: asks for the limit, not for the default, which is shorter with LongRoPE.
    length = _limit(_get_and_verify_max_len, text, found)
    return {
        "heads": found.total_num_attention_heads,
        "kv_heads": found.total_num_kv_heads,
        "head_size": found.head_size,
        "latent": found.is_deepseek_mla,
        "layers": _attention_layers(text, found.total_num_hidden_layers),
        "context": length,
    }


def _limit(verify: Any, text: Any, found: Any) -> int:
    given = {
        "hf_config": text, "model_arch_config": found, "tokenizer_config": None,
        "disable_sliding_window": False, "sliding_window": None,
    }  # fmt: skip
    if found.derived_max_model_len_and_key[1] is None:
        return 0
    # LongRoPE's default is shorter than what vLLM accepts.
    text.original_max_position_embeddings = int(found.derived_max_model_len_and_key[0])
    return int(verify(max_model_len=None, **given))


def _attention_layers(text: Any, layers: int) -> int:
    """Layers with a KV cache: as the configuration class lists their kinds, else all."""
    kinds = getattr(text, "layers_block_type", None) or getattr(text, "layer_types", None)
    if kinds:
        return sum(each in _ATTENTION for each in kinds)
    numbered = getattr(text, "attn_type_list", None)
    return sum(each == 1 for each in numbered) if numbered else layers


def tables() -> dict[str, Any]:
    """vLLM's own tables, which ours repeat."""
    from typing import get_args  # noqa: PLC0415

    from vllm.config import lora  # noqa: PLC0415
    from vllm.config.model import (  # noqa: PLC0415
        _FLOAT16_NOT_SUPPORTED_MODELS,
        iter_architecture_defaults,
    )
    from vllm.model_executor.layers import quantization  # noqa: PLC0415
    from vllm.model_executor.models import registry  # noqa: PLC0415

    generating = registry._TEXT_GENERATION_MODELS | registry._MULTIMODAL_MODELS
    pooling = registry._EMBEDDING_MODELS | registry._LATE_INTERACTION_MODELS
    pooling |= registry._REWARD_MODELS | registry._TOKEN_CLASSIFICATION_MODELS
    pooling |= registry._SEQUENCE_CLASSIFICATION_MODELS
    return {
        "not_in_float16": sorted(_FLOAT16_NOT_SUPPORTED_MODELS),
        "endings": {
            end: runner == "pooling"
            for end, (runner, _) in iter_architecture_defaults()  # type: ignore[no-untyped-call] # vLLM's
        },
        "generating": sorted(set(generating) - set(pooling)),
        "pooling": sorted(set(pooling) - set(generating)),
        "drafts": sorted(registry._SPECULATIVE_DECODING_MODELS),
        "quantizations": sorted(quantization.QUANTIZATION_METHODS),
        "lora_ranks": sorted(get_args(lora.MaxLoRARanks)),
        "capabilities": capabilities(),
    }


def capabilities() -> dict[str, int]:
    """The least compute capability, times ten, of each quantization method and scheme of compressed-tensors."""
    from vllm.model_executor.layers import quantization  # noqa: PLC0415
    from vllm.model_executor.layers.quantization.compressed_tensors import schemes  # noqa: PLC0415

    methods = {
        name: quantization.get_quantization_config(name)
        for name in quantization.QUANTIZATION_METHODS
    }
    named = {**methods, **{name: getattr(schemes, name) for name in schemes.__all__}}
    found: dict[str, int] = {}
    for name, each in named.items():
        with contextlib.suppress(NotImplementedError):  # a base class
            found[name] = each.get_min_capability()
    return found


def main() -> None:
    import vllm.config  # noqa: F401, PLC0415 - first: vLLM's modules import each other in a circle
    from vllm.transformers_utils import config as reader  # noqa: PLC0415

    # It waits before it tries again, and a class that isn't there stays away.
    vars(reader)["with_retry"] = lambda call, *_, **__: call()
    configs, found = json.load(sys.stdin), {}
    for name, config in configs.items():
        with tempfile.TemporaryDirectory() as folder:
            try:
                found[name] = answer(config, Path(folder))
            except Exception as error:  # noqa: BLE001 - the test says which config it was
                found[name] = {"error": f"{type(error).__name__}: {error}"[:300]}
    print(json.dumps({"tables": tables(), "configs": found}))


if __name__ == "__main__":
    main()
