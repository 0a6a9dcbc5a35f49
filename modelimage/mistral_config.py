"""Reads `params.json`, the configuration of models in Mistral's own format, as a `config.json`. Pure.

vLLM takes this format wherever a folder holds `consolidated*.safetensors` and `params.json`, even beside a
`config.json`; its `transformers_utils/configs/mistral.py` is the source of the names. Some models, such as Pixtral and
Mistral Small 4, are published in no other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from modelimage.bounds import positive

PARAMETERS: Final = "params.json"
_NAMES: Final[Mapping[str, str]] = {
    "dim": "hidden_size", "n_layers": "num_hidden_layers", "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads", "hidden_dim": "intermediate_size",
}  # fmt: skip
_MIXTURE: Final[Mapping[str, str]] = {
    "num_experts": "num_local_experts", "num_experts_per_tok": "num_experts_per_tok",
    "expert_hidden_dim": "moe_intermediate_size",
}  # fmt: skip
_CONTEXT: Final = "max_position_embeddings"
_DEFAULT_CONTEXT: Final = 128_000  # vLLM's, where neither document states one
_FP8: Final = "fp8_e4m3"


def is_native(paths: Iterable[str]) -> bool:
    """Whether vLLM takes the files of a model's folder as Mistral's format."""
    root = {path for path in paths if "/" not in path}
    weights = (path for path in root if path.startswith("consolidated"))
    return PARAMETERS in root and any(path.endswith(".safetensors") for path in weights)


def native_config(parameters: Mapping[str, Any], beside: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration that parameters stand for; a `config.json` beside them states what they leave out."""
    text = {_NAMES.get(key, key): value for key, value in parameters.items()}
    nested = beside.get("text_config")
    stated = {**beside, **(nested if isinstance(nested, Mapping) else {})}
    # Mistral's own files may leave the length out; vLLM then reads the config beside them, or takes its default.
    text[_CONTEXT] = (
        positive(text.get(_CONTEXT)) or positive(stated.get(_CONTEXT)) or _DEFAULT_CONTEXT
    )
    text.setdefault("max_seq_len", text[_CONTEXT])
    mixture = _part(parameters, "moe")
    text |= {_MIXTURE[key]: value for key, value in mixture.items() if key in _MIXTURE}
    text |= _quantization(_part(parameters, "quantization"))
    text["model_type"], architecture = _kind(parameters, mixture)
    yarn = _part(parameters, "yarn")
    if yarn:
        text["rope_parameters"] = {"rope_type": "yarn", "factor": yarn.get("factor")}
    multimodal = _part(parameters, "multimodal")
    # The parts that aren't text need other classes; without one of them it is the language model alone.
    if multimodal.get("whisper_model_args"):
        return {
            "model_type": "voxtral",
            "architectures": ["VoxtralForConditionalGeneration"],
            "text_config": text,
        }
    if multimodal.get("vision_encoder_args") or parameters.get("vision_encoder"):
        return {
            "model_type": "pixtral",
            "architectures": ["PixtralForConditionalGeneration"],
            "text_config": text,
        }
    return {**text, "architectures": [architecture]}


def _kind(parameters: Mapping[str, Any], mixture: Mapping[str, Any]) -> tuple[str, str]:
    """The type and the architecture of the language model."""
    if parameters.get("model_type") == "mamba":
        return "mamba2", "Mamba2ForCausalLM"
    if positive(mixture.get("num_shared_experts")) or parameters.get("kv_lora_rank"):
        return "deepseek_v3", "MistralLarge3ForCausalLM"
    return ("mixtral", "MixtralForCausalLM") if mixture else ("mistral", "MistralForCausalLM")


def _quantization(stated: Mapping[str, Any]) -> dict[str, Any]:
    if stated.get("qformat_weight") == _FP8:
        return {"quantization_config": {"quant_method": "fp8"}}
    return {"quantization_config": dict(stated)} if stated.get("quant_method") else {}


def _part(document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = document.get(key)
    return value if isinstance(value, Mapping) else {}
