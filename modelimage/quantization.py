"""The names of variants, and how a published checkpoint was quantized, from its `config.json`.

The names are those of the variants where Weightyard makes the same kind (`int8`, `int8-w8a16`, `int4`), else vLLM's
(`awq`, `gptq`, `fp8`, `nvfp4`, `mxfp4`, `bitsandbytes`). The tables of kernels by GPU and CPU use them. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from modelimage.bounds import positive
from modelimage.model_config import language_model

# Tensors that accompany quantized weights.
_SIDE_SUFFIXES: Final = (
    ".weight_scale", ".weight_scale_inv", ".weight_scale_2", ".weight_shape", ".weight_zero_point", ".weight_g_idx",
    ".weight_global_scale", ".input_scale", ".input_global_scale", ".output_scale", ".scales", ".qzeros", ".g_idx",
    ".k_scale", ".v_scale", ".weights_scaling_factor", ".activation_scale", "_scales", ".absmax", ".nested_absmax",
    ".quant_map", ".nested_quant_map", ".SCB", ".weight_format", "_scale_inv", "_weight_scale", "_weight_scale_2",
)  # fmt: skip
# In their names comes the kind: `weight.quant_state.bitsandbytes__nf4`.
_SIDE_PARTS: Final = (".quant_state.",)
_PACKED_SUFFIXES: Final = (".weight_packed", ".qweight", "_blocks", "_packed")
_INTEGERS: Final[Mapping[str, int]] = {"I32": 32, "U32": 32, "I8": 8, "U8": 8}
# Methods with one spelling of their own; others are named as they are.
_NAMES: Final[Mapping[str, str]] = {
    "awq": "awq", "auto-awq": "awq", "awq_marlin": "awq", "gptq": "gptq", "gptq_marlin": "gptq", "auto-round": "gptq",
    "fp8": "fp8", "fbgemm_fp8": "fp8", "mxfp4": "mxfp4", "gpt_oss_mxfp4": "mxfp4", "bitsandbytes": "bitsandbytes",
    "modelopt": "fp8", "modelopt_fp4": "nvfp4",
}  # fmt: skip
# Methods whose checkpoints exist in several widths, and how these are written.
_WIDTHS: Final[Mapping[str, str]] = {"gptq": "-int{}", "bitsandbytes": "-{}bit"}
_UNNAMED: Final = re.compile(r"[^a-z0-9.]+")
_MAX_VARIANT: Final = 40
_FOUR: Final = 4
_EIGHT: Final = 8


class Variant(StrEnum):
    """The precisions that a build makes, most accurate first.

    Weights that were published quantized have other names, such as awq or fp8.
    """

    # 8-bit weights alone lose less than 8-bit weights and activations; 4 bits lose most.
    BF16 = "bf16"
    INT8_W8A16 = "int8-w8a16"
    INT8 = "int8"
    INT4 = "int4"


# The published weights, whatever their precision: an image's default variant.
DEFAULT_VARIANT: Final = Variant.BF16.value


@dataclass(frozen=True, slots=True)
class Quantization:
    """`name` is empty for weights that aren't quantized, `bits` 0 where they aren't stated."""

    name: str = ""
    bits: int = 0

    @property
    def variant(self) -> str:
        """The name of a variant that was published so, valid in tags; empty for weights that aren't quantized."""
        name = (
            f"{self.name}{_WIDTHS[self.name].format(self.bits)}" if self._has_widths else self.name
        )
        name = name.replace("bitsandbytes", "bnb")
        # A config may state any method.
        return _UNNAMED.sub("-", name.lower()).strip("-.")[:_MAX_VARIANT].rstrip("-.")

    @property
    def _has_widths(self) -> bool:
        return bool(self.bits) and self.name in _WIDTHS

    def is_side(self, tensor: str) -> bool:
        """Whether a tensor is storage beside quantized weights: scales, zero points, shapes."""
        return tensor.endswith(_SIDE_SUFFIXES) or any(part in tensor for part in _SIDE_PARTS)

    def values_per_element(self, tensor: str, dtype: str) -> int:
        """Parameters in one element of a tensor; `dtype` in the spelling of safetensors."""
        width = _INTEGERS.get(dtype, 0)
        if not self.bits or width <= self.bits:
            return 1
        # NVFP4 and bitsandbytes pack two values in each byte of a tensor with an ordinary name.
        packed = tensor.endswith(_PACKED_SUFFIXES) or (dtype == "U8" and tensor.endswith(".weight"))
        return width // self.bits if packed else 1


def quantization_of(config: Mapping[str, Any]) -> Quantization:
    """The quantization that a parsed `config.json` states."""
    stated = quantization_config(config)
    if not stated:
        return Quantization()
    method = _method(stated)
    groups = _weights(stated)
    if groups:
        return _compressed(*groups, packing=str(stated.get("format", "")))
    name = _NAMES.get(method, method)
    if name == "bitsandbytes":
        return Quantization(
            name, _FOUR if stated.get("load_in_4bit") or stated.get("_load_in_4bit") else _EIGHT
        )
    bits = {"fp8": _EIGHT, "nvfp4": _FOUR, "mxfp4": _FOUR}.get(name) or _count(
        stated, "bits", "w_bit"
    )
    return Quantization(name, bits)


def quantization_block(config: Mapping[str, Any]) -> int:
    """Weights that share a scale along the dimension that tensor parallelism cuts; 0 if one scale covers all."""
    found = quantization_config(config)
    groups = _weights(found)
    if groups:
        found, _ = groups
    sizes = found.get("weight_block_size") or found.get("block_structure")
    if isinstance(sizes, list) and sizes:
        return positive(sizes[-1])
    return positive(found.get("group_size", found.get("q_group_size")))


def quantization_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The quantization that a config states, for the whole or for its language model; empty if none."""
    for part in (config, language_model(config).stated):
        for key in ("quantization_config", "compression_config"):
            found = part.get(key)
            if isinstance(found, Mapping):
                return found
    return {}


def _method(stated: Mapping[str, Any]) -> str:
    """The method, as vLLM normalizes it: ModelOpt states an algorithm beside, or instead of, a method."""
    method = (
        str(stated.get("quant_method") or "")
        .lower()
        .replace("compressed_tensors", "compressed-tensors")
    )
    nested = stated.get("quantization")
    inner = nested if isinstance(nested, Mapping) else {}
    algorithm = str(stated.get("quant_algo") or inner.get("quant_algo") or "").upper()
    if "FP4" in algorithm:
        return "modelopt_fp4"
    return "modelopt" if "FP8" in algorithm else method


def _weights(stated: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
    """The weights and input activations of the first group of compressed-tensors; None if there is none."""
    groups = stated.get("config_groups")
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if isinstance(weights, Mapping):
            inputs = group.get("input_activations")
            return weights, inputs if isinstance(inputs, Mapping) else {}
    return None


def _compressed(
    weights: Mapping[str, Any], inputs: Mapping[str, Any], *, packing: str
) -> Quantization:
    bits, is_float = _count(weights, "num_bits"), weights.get("type") == "float"
    if bits == _FOUR:
        floats = "mxfp4" if "mxfp4" in packing or weights.get("group_size") == 32 else "nvfp4"
        return Quantization(floats if is_float else "int4", bits)
    if is_float:
        return Quantization("fp8", bits)
    if bits == _EIGHT:
        return Quantization("int8" if inputs else "int8-w8a16", bits)
    return Quantization("compressed-tensors", bits)


def _count(stated: Mapping[str, Any], *keys: str) -> int:
    return next(filter(None, (positive(stated.get(key)) for key in keys)), 0)
