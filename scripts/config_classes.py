"""Generates `modelimage/config_classes.json`: what the configuration classes of transformers and vLLM assume.

    python scripts/config_classes.py          write it
    python scripts/config_classes.py --check  exit with 1 and the differences when it is out of date

It needs what `scripts/setup.sh serve` installs. Run it after an update of vLLM or transformers.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

TABLE: Final = Path(__file__).parent.parent / "modelimage" / "config_classes.json"
# The keys that the planner reads. Another spelling of one of them, by a class's attribute map, is included too.
KEYS: Final = frozenset({
    "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size",
    "intermediate_size", "moe_intermediate_size", "max_position_embeddings", "vocab_size",
    "kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "n_head_kv", "num_kv_heads",
    "multi_query", "multi_query_attention", "multi_query_group_num", "num_attention_groups",
    "new_decoder_architecture", "hidden_size_per_head", "attention_head_dim", "n_positions",
    "max_seq_len", "seq_length", "model_max_length", "max_target_positions",
    "max_source_positions", "max_sequence_length", "max_seq_length", "seq_len",
    "num_experts_per_tok", "full_attention_interval", "attn_layer_period", "attn_layer_offset",
    "attn_layer_indices", "full_attn_idxs", "hybrid_override_pattern", "layer_types",
    "layers_block_type", "num_kv_shared_layers", "global_head_dim", "num_global_key_value_heads",
    "attention_k_eq_v", "decoder_layers", "decoder_attention_heads", "is_encoder_decoder",
    "mamba_n_heads", "mamba_num_heads", "linear_num_key_heads", "linear_num_value_heads",
    "index_head_dim", "num_layers", "layer_group_size", "mamba_step", "pad_token_id", "d_kv",
    "num_decoder_layers", "kv_channels", "ffn_hidden_size",
    "num_heads", "n_groups", "mamba_n_groups", "mamba_ngroups", "n_mamba_heads", "mamba_expand", "expand",
    "shared_expert_intermediate_size", "shared_intermediate_size",
})  # fmt: skip


def class_row(kind: type[Any]) -> dict[str, Any]:
    """What one class assumes: defaults of absent keys, other spellings, and the language model's part."""
    names = {
        key: name
        for key, name in (getattr(kind, "attribute_map", None) or {}).items()
        if key in KEYS or name in KEYS
    }
    wanted = KEYS | set(names) | set(names.values())
    defaults = {
        key: value for key, value in _defaults(kind).items() if key in wanted and _plain(value)
    }
    row = {"defaults": dict(sorted(defaults.items())), "names": dict(sorted(names.items()))}
    text = _text_part(kind)
    return {key: value for key, value in (row | {"text": text}).items() if value}


def _defaults(kind: type[Any]) -> Mapping[str, Any]:
    found: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        own = vars(base)
        if "__dataclass_fields__" in own:
            found |= {each.name: each.default for each in dataclasses.fields(base)}
        # Classes of vLLM write their `__init__` by hand.
        if "__init__" in own:
            parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
            found |= {each.name: each.default for each in parameters}
    return found


def _plain(value: object) -> bool:
    # False is what the planner assumes of an absent key.
    return value is not False and isinstance(value, int | str | list) and value not in ("", [])


def _text_part(kind: type[Any]) -> list[str] | None:
    """The key of the language model's part and its type, from an instance of defaults."""
    try:
        whole = kind()
        text = whole.get_text_config()
    except Exception:  # noqa: BLE001 - classes that can't be made from nothing have no default part
        return None
    if text is whole:
        return None
    for key, value in vars(whole).items():
        if value is text:
            return [key, text.model_type]
    return None


def table() -> dict[str, Any]:
    """The whole table: a row for each model type."""
    import transformers  # noqa: PLC0415 - not installed where only the code is read
    import vllm  # noqa: PLC0415
    from vllm.transformers_utils.config import _CONFIG_REGISTRY  # noqa: PLC0415

    classes = {each: transformers.CONFIG_MAPPING[each] for each in transformers.CONFIG_MAPPING}
    # vLLM's own classes replace those of transformers.
    classes |= {each: _CONFIG_REGISTRY[each] for each in _CONFIG_REGISTRY}
    rows = {each: class_row(kind) for each, kind in sorted(classes.items())}
    return {
        "source": {"transformers": transformers.__version__, "vllm": vllm.__version__},
        "classes": {each: row for each, row in rows.items() if row},
    }


def _written(found: Mapping[str, Any]) -> str:
    lines = [f"    {json.dumps(each)}: {json.dumps(row)}" for each, row in found["classes"].items()]
    source = json.dumps(found["source"])
    return f'{{\n  "source": {source},\n  "classes": {{\n' + ",\n".join(lines) + "\n  }\n}\n"


def differences(made: Mapping[str, Any], kept: Mapping[str, Any]) -> list[str]:
    """The model types whose rows differ between two tables."""
    kinds = sorted(made["classes"].keys() | kept["classes"].keys())
    return [each for each in kinds if made["classes"].get(each) != kept["classes"].get(each)]


def main() -> int:
    warnings.simplefilter("ignore")
    made = table()
    if "--check" not in sys.argv[1:]:
        TABLE.write_text(_written(made))
        return 0
    changed = differences(made, json.loads(TABLE.read_text()))
    print("\n".join(changed))
    return int(bool(changed))


if __name__ == "__main__":
    sys.exit(main())
