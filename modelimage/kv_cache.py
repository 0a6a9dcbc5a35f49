"""The KV cache of a model: bytes per token over all layers, and how tensor parallelism divides it.

    attention         2 x attention layers x KV heads x head size x 2 bytes
    latent attention  layers x (latent rank + rotary size) x 2 bytes, a copy on each GPU

Sources: vLLM's `model_arch_config_convertor.py` (heads, latent attention), `ModelConfig.get_num_layers_by_block_type`
(hybrid models), `verify_with_parallel_config` and the layers' own checks (tensor parallel sizes). As in vLLM, the cache
has 16 bits whatever the weights' precision; sliding windows count as full attention, so that part is an upper bound.
A size that can't be derived is None, never 0: 0 means that the model keeps no KV cache. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from modelimage.bounds import positive
from modelimage.model_config import (
    ModelConfig,
    attention_heads,
    each_layer,
    head_size,
    kv_heads,
    language_model,
)
from modelimage.quantization import quantization_block

_HALF: Final = 2  # bytes of a bf16 or f16 value
_MOST_LAYERS: Final = 10_000
_LARGEST_SPLIT: Final = 64  # GPUs of one tensor parallel group
_VOCABULARY_PADDING: Final = 64  # vLLM's DEFAULT_VOCAB_PADDING_SIZE
# Models with layers of Mamba 1, and their key of the inner size in hidden sizes.
_MAMBA_1: Final[Mapping[str, str]] = {
    "mamba": "expand",
    "falcon_mamba": "expand",
    "jamba": "mamba_expand",
}
_INDEX_BLOCK: Final = 128  # values of a sparse index that share a 4-byte scale

# vLLM's list of models that cache a latent (`is_deepseek_mla`). Others with `kv_lora_rank` cache keys and values.
LATENT: Final = frozenset({
    "axk1", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots3_note", "deepseek_mtp", "k3_dspark", "glm5_next",
    "glm5_next_text", "glm_moe_dsa", "glm4_moe_lite", "kimi_k2", "kimi_linear", "longcat_flash", "pangu_ultra_moe",
    "bailing_hybrid", "hy_v4",
})  # fmt: skip
# Models without a KV cache: state space models keep a state of constant size, encoders compute all tokens at once.
WITHOUT_CACHE: Final = frozenset({
    "mamba", "mamba2", "falcon_mamba", "rwkv", "medusa", "timm_wrapper", "bert", "roberta", "xlm-roberta",
    "xlm-roberta-xl", "camembert", "distilbert", "albert", "electra", "mpnet", "deberta", "deberta-v2", "modernbert",
    "nomic_bert", "ernie", "esm", "new", "gte", "clip", "siglip", "siglip2", "vit", "dinov2", "neobert", "eurobert",
    "xmod", "data2vec-text", "jina_bert", "modernvbert", "embedding_gemma2_text", "openai_privacy_filter",
})  # fmt: skip
# Kinds of layers without a KV cache. One that isn't known counts as attention: too much is reserved, never too little.
_NO_ATTENTION: Final = frozenset({
    "mamba", "mamba1", "mamba2", "linear_attention", "linear", "conv", "short_conv", "recurrent", "rglru", "kda",
    "gated_deltanet", "gated_delta_net", "lightning_attention", "rwkv", "mlp", "moe", "dense", "sparse", "identity",
    "no_op",
})  # fmt: skip
# Decoders that vLLM runs as encoders, which keep nothing, where the config says that attention sees what follows.
_BIDIRECTIONAL: Final = frozenset(
    {"llama", "qwen2", "qwen3", "apertus", "gemma3", "gemma3_text", "llama_bidirec"}
)
_SLIDING: Final = "sliding_attention"
# Hybrid models that state how often full attention comes, and after how many layers it does by default.
_INTERVALS: Final[Mapping[str, int]] = {
    "qwen3_next": 4, "qwen3_5_text": 4, "qwen3_5_moe_text": 4, "qwen4_exp_text": 4, "olmo_hybrid": 4, "minimax": 0,
}  # fmt: skip


def kv_cache_bytes_per_token(config: Mapping[str, Any]) -> int | None:
    """Bytes of KV cache per token over all layers; 0 if the model keeps none, None if it can't be derived."""
    text = language_model(config)
    if _keeps_none(config, text):
        return 0
    if text.stated.get("compress_ratios"):
        return None
    # 0 stands for keys that aren't stated.
    return _bytes(text) or None


def _keeps_none(config: Mapping[str, Any], text: ModelConfig) -> bool:
    """Whether all tokens are computed at once, or the state has a constant size."""
    if text.model_type in WITHOUT_CACHE:
        return not text.is_set("is_decoder")
    named = config.get("architectures")
    if isinstance(named, list) and any("Bidirectional" in str(each) for each in named):
        return True
    stated = text.stated.get("is_causal", config.get("is_causal"))
    both_ways = stated is False or text.is_set("use_bidirectional_attention")
    return both_ways and text.model_type in _BIDIRECTIONAL


def _bytes(text: ModelConfig) -> int:
    layers, several = attention_layers(text), _several_kv_heads(text)
    if is_latent(text):
        each = text.count("kv_lora_rank") + text.count("qk_rope_head_dim")
        return layers * (each * _HALF + _index_bytes(text))
    if text.model_type.startswith("gemma4"):
        return _gemma4_bytes(text)
    sliding = _sliding_model(text)
    if sliding is not None:
        short = min(_sliding_layers(text), layers)
        return _HALF * ((layers - short) * _own_pair(text) + short * _own_pair(sliding))
    if several:
        return 2 * sum(several) * _key_size(text) * _HALF
    every = layers * 2 * kv_heads(text) * _key_size(text) * _HALF
    return every + _cross_attention_bytes(text, every)


def split_kv_heads(config: Mapping[str, Any]) -> int:
    """KV heads that tensor parallelism divides among GPUs; 1 if each GPU keeps all; 0 if unknown."""
    text = language_model(config)
    return 1 if is_latent(text) else min(_several_kv_heads(text), default=_fewest_kv_heads(text))


def tensor_parallel_sizes(config: Mapping[str, Any]) -> tuple[int, ...]:
    """The tensor parallel sizes up to 64 with which vLLM starts; empty if the config states no heads."""
    text = language_model(config)
    heads, kept = attention_heads(text), each_layer(text, "num_attention_heads")
    state, groups = _state_parts(text)
    if not heads and not state:
        return ()
    sliding = _sliding_model(text)
    whole = [*(kept or filter(None, [heads])), *_whole_parts(text), *state]
    grouped = [] if is_latent(text) else _several_kv_heads(text) or [kv_heads(text)]
    if sliding is not None:
        whole, grouped = [*whole, attention_heads(sliding)], [*grouped, kv_heads(sliding)]
    grouped = [each for each in grouped if each]
    blocks = _block_parts(config, text)
    return tuple(
        size
        for size in range(1, _LARGEST_SPLIT + 1)
        if size == 1
        or (
            all(each % size == 0 for each in whole)
            # Each GPU has some KV heads, or some GPUs have a copy of one.
            and all(each % size == 0 or size % each == 0 for each in grouped)
            # One group of a state's inputs is copied to each GPU; several can't be.
            and (groups <= 1 or groups % size == 0)
            and all(part % size == 0 and part // size % block == 0 for part, block in blocks)
        )
    )


def is_latent(text: ModelConfig) -> bool:
    """Whether vLLM caches one compressed vector per layer (DeepSeek's MLA) instead of keys and values."""
    return bool(text.count("kv_lora_rank")) and (text.model_type in LATENT or not text.is_known)


def attention_layers(text: ModelConfig) -> int:
    """Layers with a KV cache of their own; 0 if not stated."""
    layers = _all_layers(text)
    for found in (_listed(text), _counted(text, layers)):
        if found is not None:
            return found
    # The last layers of Gemma 3n share the cache of earlier ones.
    return max(layers - text.count("num_kv_shared_layers"), 0)


def _all_layers(text: ModelConfig) -> int:
    if text.model_type == "longcat_flash":
        return 2 * text.count("num_layers")  # two attentions in each layer
    if text.model_type == "iquestloopcoder":
        # The layers are passed several times, with a cache of each pass.
        return (text.count("loop_num") or 2) * text.count("num_hidden_layers")
    if text.is_set("is_encoder_decoder"):
        layers = text.count("decoder_layers", "num_decoder_layers", "num_hidden_layers")
    else:
        layers = text.count("num_hidden_layers")
    return layers if layers <= _MOST_LAYERS else 0


def _listed(text: ModelConfig) -> int | None:
    """Attention layers of a config that lists each layer's kind."""
    for key in ("layers_block_type", "layer_types"):
        kinds = text.list(key)
        if kinds:
            # Some lists go on with the layers that predict further tokens, which aren't loaded.
            kinds = kinds[: _all_layers(text) or len(kinds)]
            # Gemma 3n's last layers read the cache of earlier ones and have none of their own.
            shared = min(text.count("num_kv_shared_layers"), len(kinds))
            own = kinds[: len(kinds) - shared]
            return sum(kind not in _NO_ATTENTION for kind in map(str, own))
    blocks = [
        each.get("block_type") for each in text.list("block_configs") if isinstance(each, Mapping)
    ]
    if any(blocks):
        return blocks.count("attention")
    pattern = text.value("hybrid_override_pattern")
    # Nemotron-H writes a letter for each layer: M is Mamba, - an MLP, * attention.
    if isinstance(pattern, str) and pattern:
        return str.count(pattern, "*")
    # MiniMax-Text-01: 0 is linear attention, which keeps a state of constant size, 1 softmax attention.
    kinds = text.list("attn_type_list")
    if kinds:
        return kinds.count(1)
    # Bamba, LFM2 and Zamba 2 number the attention layers and leave the others out.
    for key in ("attn_layer_indices", "full_attn_idxs", "hybrid_layer_ids"):
        if text.list(key):
            return len(text.list(key))
    full = text.part("linear_attn_config").get("full_attn_layers")
    return len(full) if isinstance(full, list) else None


def _counted(text: ModelConfig, layers: int) -> int | None:
    """Attention layers of a config that states how often they come."""
    period, offset = text.count("attn_layer_period"), text.count("attn_layer_offset")
    if period:
        return len(range(offset, layers, period))
    interval = text.count("full_attention_interval", "layer_group_size") or _INTERVALS.get(
        text.model_type, 0
    )
    if interval and (text.model_type in _INTERVALS or text.model_type.startswith("bailing_hybrid")):
        return layers // interval
    if text.model_type == "minimax":
        return -(-layers // 2)
    # PLaMo 2: one layer in the middle of each step.
    step = text.count("mamba_step")
    if step > 1 and text.value("mamba_enabled") is not False:
        return len(range(step // 2, layers, step)) if layers > step // 2 else min(layers, 1)
    # Zamba 2's and Nemotron-H's classes list the kinds of default layers, which no checkpoint leaves out.
    return None


def _several_kv_heads(text: ModelConfig) -> list[int]:
    """KV heads of each attention layer, for models in which layers differ; empty for others."""
    blocks = text.list("block_configs")
    if any(_group(block) for block in blocks):
        groups = [_group(block) for block in blocks]
        return [attention_heads(text) // group for group in groups if group]
    for key in ("num_kv_heads", "num_key_value_heads", "num_key_value_heads_per_layer"):
        listed = each_layer(text, key)
        if listed:
            return listed
    return []


def _sliding_model(text: ModelConfig) -> ModelConfig | None:
    """The model as its layers with a sliding window are, where these have other heads; else None."""
    # Step 3.5 states the keys that differ, MiMo 2 and Inkling all with a prefix.
    other = text.part("attention_other_setting")
    if not other:
        other = {
            key.removeprefix("swa_"): value
            for key, value in text.stated.items()
            if key.startswith("swa_") and "head" in key
        }
    return replace(text, stated={**text.stated, **other}) if other else None


def _sliding_layers(text: ModelConfig) -> int:
    """Layers that have the heads of `_sliding_model`."""
    kinds = text.list("layer_types")[: _all_layers(text)]
    return (
        kinds.count(_SLIDING)
        or text.list("hybrid_layer_pattern").count(1)
        or len(text.list("local_layer_ids"))
    )


def _own_pair(text: ModelConfig) -> int:
    """Values of one token's keys and values in a layer: these models keep each in its own size."""
    key = head_size(text)
    return kv_heads(text) * (key + (text.count("v_head_dim") or key))


def _fewest_kv_heads(text: ModelConfig) -> int:
    sliding = _sliding_model(text)
    return min(kv_heads(text), kv_heads(sliding)) if sliding else kv_heads(text)


def _group(block: object) -> int:
    """Query heads per KV head of one layer of a heterogeneous model; 0 if it has no attention."""
    attention = block.get("attention") if isinstance(block, Mapping) else None
    if not isinstance(attention, Mapping) or attention.get("no_op"):
        return 0
    return positive(attention.get("n_heads_in_group"))


def _key_size(text: ModelConfig) -> int:
    """Values of one head's key: as vLLM pads it where keys and values differ."""
    # MiniCPM 3 computes keys from a latent but caches them whole.
    whole = text.count("qk_nope_head_dim") + text.count("qk_rope_head_dim")
    if whole and text.count("kv_lora_rank"):
        return whole
    return max(head_size(text), text.count("v_head_dim") if "v_head_dim" in text.stated else 0)


def _gemma4_bytes(text: ModelConfig) -> int:
    """Gemma 4: layers with full attention have other head sizes, and may have other KV heads."""
    layers = _all_layers(text)
    kinds = text.list("layer_types") or [
        "sliding_attention" if (i + 1) % 6 else "full_attention" for i in range(layers)
    ]
    kinds = [*kinds[:-1], "full_attention"]
    own = kinds[: max(len(kinds) - text.count("num_kv_shared_layers"), 0)]
    full = own.count("full_attention")
    heads = text.count("num_global_key_value_heads") if text.is_set("attention_k_eq_v") else 0
    wide = (heads or kv_heads(text)) * (text.count("global_head_dim") or 512)
    narrow = kv_heads(text) * head_size(text)
    return 2 * _HALF * (full * wide + (len(own) - full) * narrow)


def _cross_attention_bytes(text: ModelConfig, per_token: int) -> int:
    """The part of a request's encoder cache that a token of its longest context takes."""
    if not text.is_set("is_encoder_decoder"):
        return 0
    source, target = text.count("max_source_positions"), text.count("max_target_positions")
    return per_token * -(-source // target) if source and target else per_token


def _index_bytes(text: ModelConfig) -> int:
    """The index of DeepSeek's sparse attention: 8 bits a value, and scales."""
    size = text.count("index_head_dim") if text.model_type in ("deepseek_v32", "glm_moe_dsa") else 0
    return size + -(-size // _INDEX_BLOCK) * 4


def _whole_parts(text: ModelConfig) -> list[int]:
    """Sizes that each GPU takes an equal part of: inner layers, padded vocabulary, heads of linear attention."""
    keys = (
        "intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size",
        "linear_num_key_heads", "linear_num_value_heads",
    )  # fmt: skip
    vocabulary = text.count("vocab_size")
    padded = -(-vocabulary // _VOCABULARY_PADDING) * _VOCABULARY_PADDING
    return [each for each in (*(text.count(key) for key in keys), padded) if each]


def _state_parts(text: ModelConfig) -> tuple[list[int], int]:
    """Of Mamba layers: the sizes that each GPU takes an equal part of, and the groups; empty and 0 for other models.

    Source: the checks of vLLM's `mamba_mixer.py` (Mamba 1: the inner size) and `mamba_mixer2.py` (heads and groups).
    """
    if text.model_type in _MAMBA_1:
        return [text.count(_MAMBA_1[text.model_type]) * text.count("hidden_size")], 0
    keys = ["mamba_n_heads", "mamba_num_heads", "n_mamba_heads"]
    # Other models call something else so.
    keys += ["num_heads"] if text.model_type == "mamba2" else []
    heads = text.count(*keys)
    groups = text.count("mamba_n_groups", "mamba_ngroups", "n_groups")
    return ([heads], groups) if heads else ([], 0)


def _block_parts(config: Mapping[str, Any], text: ModelConfig) -> list[tuple[int, int]]:
    """Sizes of quantized layers, each with the block of weights that one scale covers and no GPU may cut."""
    block = quantization_block(config)
    if block <= 1:
        return []
    sizes = (
        text.count("intermediate_size") if not text.count("moe_intermediate_size") else 0,
        text.count("moe_intermediate_size"),
        0 if is_latent(text) else attention_heads(text) * head_size(text),
    )
    # A layer that isn't a multiple of its block as a whole isn't quantized this way.
    return [(size, block) for size in sizes if size and size % block == 0]
