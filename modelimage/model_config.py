"""Reads `config.json` as the configuration class of its model type does.

A checkpoint's config leaves out what its class assumes, and classes spell the same thing differently. The table
`config_classes.json` has the defaults and spellings of transformers' and vLLM's classes; `scripts/config_classes.py`
generates it from them. The rules of this module say how vLLM derives heads, head sizes and context
(`vllm/transformers_utils/model_arch_config_convertor.py`). Must not know memory sizes or hardware.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from modelimage.bounds import positive

# Spellings of keys where the class is not in the table: remote code.
_SPELLINGS: Final[Mapping[str, tuple[str, ...]]] = {
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers", "num_transformer_layers", "decoder_layers"),
    "num_attention_heads": ("n_head", "n_heads", "num_heads", "num_query_heads", "decoder_attention_heads"),
    "hidden_size": ("n_embd", "d_model", "model_dim", "dim"),
    "intermediate_size": ("n_inner", "ffn_dim", "ffn_hidden_size", "d_ff"),
    "vocab_size": ("padded_vocab_size",),
    "head_dim": ("kv_channels", "attention_head_size"),
    "num_experts_per_tok": ("num_experts_per_token", "moe_top_k", "top_k_experts", "moe_topk"),
}  # fmt: skip
# Keys of a context length, as vLLM lists them, then OpenELM's.
_CONTEXT_KEYS: Final = (
    "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length",
    "max_target_positions", "max_sequence_length", "max_seq_length", "seq_len", "max_context_length",
)  # fmt: skip
# Rotary scalings that leave the stated length as it is, because it is scaled already (vLLM, `_get_and_verify_max_len`).
_ALREADY_SCALED: Final = frozenset(
    {"su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling", "mrope", "default"}
)  # fmt: skip
# Positions of these start behind the padding token's.
_PADDED_POSITIONS: Final = frozenset(
    {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "xmod", "data2vec-text"}
)
_NESTED: Final = ("text_config", "llm_config", "language_config", "decoder_config", "vlm_config")
# Repositories whose configuration and weights a model uses as its language model's (Ultravox).
_ELSEWHERE: Final = "text_model_id"


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One configuration: what it states, and its class's row. Values are untrusted and may have any type."""

    model_type: str
    stated: Mapping[str, Any]

    def value(self, key: str) -> Any:
        """A key's value as its class has it: stated in any spelling, else the class's default; None if absent."""
        row = _classes().get(self.model_type, {})
        names = dict.fromkeys((row.get("names", {}).get(key, key), key))
        given = [self.stated[name] for name in names if name in self.stated]
        # A stated null is a value: transformers' classes take it in place of their default.
        if given:
            return next((each for each in given if each is not None), None)
        defaults = row.get("defaults", {})
        known = next((defaults[name] for name in names if name in defaults), None)
        return self._spelled(key) or known

    def count(self, *keys: str) -> int:
        """The value of the first of `keys` that is a positive integer, else 0."""
        return next(filter(None, (positive(self.value(key)) for key in keys)), 0)

    def list(self, key: str) -> list[Any]:
        """A list's value; empty if it is absent or no list."""
        value = self.value(key)
        return value if isinstance(value, list) else []

    def part(self, key: str) -> Mapping[str, Any]:
        """A nested object; empty if it is absent."""
        value = self.stated.get(key)
        return value if isinstance(value, Mapping) else {}

    def is_set(self, key: str) -> bool:
        return self.value(key) is True

    @property
    def is_known(self) -> bool:
        """Whether the table has this model type."""
        return self.model_type in _classes()

    def _spelled(self, key: str) -> Any:
        spellings = _SPELLINGS.get(key, ())
        # Mamba 2 calls its state's heads `num_heads`.
        if key == "num_attention_heads" and self.is_known:
            return None
        return next((self.stated[name] for name in spellings if self.stated.get(name)), None)


def whole_config(config: Mapping[str, Any]) -> ModelConfig:
    """A parsed `config.json`."""
    return ModelConfig(_type_of(config), config)


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's part of a config; multimodal checkpoints nest it."""
    return language_model(config).stated


def language_model(config: Mapping[str, Any]) -> ModelConfig:
    """The language model's part of a config, with its type: its own, else the one that the whole's class assumes."""
    kind = _type_of(config)
    # Nothing of it is known, and its class's defaults aren't its own.
    if config.get(_ELSEWHERE):
        return ModelConfig("", {})
    key, assumed = _classes().get(kind, {}).get("text", ("", ""))
    for name in dict.fromkeys((key, *_NESTED)):
        nested = config.get(name)
        if isinstance(nested, Mapping):
            found = ModelConfig(_type_of(nested) or assumed, nested)
            deeper = any(isinstance(nested.get(each), Mapping) for each in _NESTED)
            return language_model({"model_type": assumed, **nested}) if deeper else found
    # Qwen's omni models nest the language model in a `thinker`.
    thinker = config.get("thinker_config")
    if isinstance(thinker, Mapping):
        return language_model(thinker)
    # Older checkpoints state the language model's keys beside `vision_config`.
    return ModelConfig(assumed or kind, config)


def _type_of(config: Mapping[str, Any]) -> str:
    kind = config.get("model_type")
    return kind if isinstance(kind, str) else ""


def attention_heads(text: ModelConfig) -> int:
    """Query heads; of a model with a different number in each layer, their greatest number; 0 if not stated."""
    if text.is_set("is_encoder_decoder") and text.count("decoder_attention_heads"):
        return text.count("decoder_attention_heads")
    several = _counts(text.value("num_attention_heads"))
    return max(several, default=0)


def kv_heads(text: ModelConfig) -> int:
    """KV heads of a layer, by vLLM's order of keys; 0 if not stated."""
    # GPT-BigCode and Falcon 7B share one KV head; Falcon's later models keep the key but go by `num_kv_heads`.
    if text.is_set("multi_query") and not text.is_set("new_decoder_architecture"):
        return text.count("multi_query_group_num") or 1
    # MPT and DBRX.
    nested = positive(text.part("attn_config").get("kv_n_heads"))
    if nested:
        return nested
    if text.value("multi_query_attention") is False:
        return attention_heads(text)
    if text.is_set("is_encoder_decoder") and text.count("decoder_attention_heads"):
        return attention_heads(text)
    keys = (
        "n_head_kv",
        "num_kv_heads",
        "num_key_value_heads",
        "multi_query_group_num",
        "num_attention_groups",
    )
    for key in keys:
        several = _counts(text.value(key))
        if several:
            return max(several)
    return attention_heads(text)


def head_size(text: ModelConfig) -> int:
    """Values of one head; 0 if not stated."""
    heads = attention_heads(text)
    if text.model_type == "zamba2":
        # Its attention reads the layer's input beside the model's.
        return 2 * text.count("hidden_size") // heads if heads else 0
    keys = ("head_dim", "hidden_size_per_head", "kv_channels", "d_kv", "attention_head_dim")
    return text.count(*keys) or (text.count("hidden_size") // heads if heads else 0)


def context_length(
    config: Mapping[str, Any], *, sentence_length: int = 0, tokenizer_length: int = 0
) -> int:
    """The longest context in tokens that vLLM accepts; 0 if nothing states it.

    `sentence_length` is sentence-transformers' `max_seq_length`; `tokenizer_length` the tokenizer's
    `model_max_length`, which counts for models with absolute positions.
    """
    text = language_model(config)
    if sentence_length:
        return sentence_length
    stated = [length for key in _CONTEXT_KEYS if (length := text.count(key))]
    # Cohere's models state how long they were trained for, beside a shorter number of positions.
    length = text.count("model_max_length") or min(stated, default=0)
    absolute = config.get("position_embedding_type") == "absolute"
    if absolute and tokenizer_length and length:
        length = min(length, tokenizer_length)
    if text.model_type in _PADDED_POSITIONS and length:
        rows = text.count("max_position_embeddings")
        length = min(length, rows - text.count("pad_token_id") - 1)
    if "gemma3" not in text.model_type:
        length = int(length * _rope_factor(text))
    return max(length, 0)


def _rope_factor(text: ModelConfig) -> float:
    """What rotary scaling multiplies the stated context with."""
    factor = 1.0
    stated = [text.part("rope_scaling"), text.part("rope_parameters")]
    # Parameters may be nested by the kind of layer.
    nested = [each for part in stated for each in part.values() if isinstance(each, Mapping)]
    for part in (*stated, *nested):
        kind = part.get("rope_type") or part.get("type") or ("default" if part in nested else "")
        value = part.get("factor")
        if (
            isinstance(kind, str)
            and kind not in ("", *_ALREADY_SCALED)
            and isinstance(value, int | float)
            and 1 <= value < 1e4
        ):
            factor = float(value)
    return factor


def _counts(value: object) -> list[int]:
    """A count, or a count for each layer, as a list of positive integers."""
    several = value if isinstance(value, list) else [value]
    return [count for each in several if (count := positive(each))]


def each_layer(text: ModelConfig, key: str) -> list[int]:
    """The counts of a key that is stated for each layer; empty if it is one for all."""
    value = text.value(key)
    return _counts(value) if isinstance(value, list) else []


@cache
def _classes() -> Mapping[str, Any]:
    table = Path(__file__).with_name("config_classes.json").read_text(encoding="utf-8")
    classes = json.loads(table)["classes"]
    assert isinstance(classes, dict)  # noqa: S101 - the table is a part of this package
    return classes
