"""The names of variants, and how a published checkpoint was quantized, from its `config.json`.

The names are those of the variants where Weightyard makes the same kind (`int8`, `int8-w8a16`, `int4`), else vLLM's
(`awq`, `gptq`, `fp8`, `nvfp4`, `mxfp4`, `bitsandbytes`). Formats with kernels of their own have names of their own:
`fp8-block` is FP8 with a scale for each block of weights, `fp8-fbgemm` and `fp8-modelopt` are FP8 as these two write
it, `w4a8-int8` and `w4a8-fp8` are INT4 weights with 8-bit activations. The tables of kernels by GPU and CPU use these
names. Pure.
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
_FP8: Final = "fp8"
_BLOCK_FP8: Final = "fp8-block"
_MODELOPT_FP8: Final = "fp8-modelopt"
# Methods with one spelling of their own; others are named as they are.
_NAMES: Final[Mapping[str, str]] = {
    "awq": "awq", "auto-awq": "awq", "auto_awq": "awq", "awq_marlin": "awq", "gptq": "gptq", "auto_gptq": "gptq",
    "gptq_marlin": "gptq", "auto-round": "gptq", "inc": "gptq", "fp8": _FP8, "fbgemm_fp8": "fp8-fbgemm",
    "mxfp4": "mxfp4", "gpt_oss_mxfp4": "mxfp4", "bitsandbytes": "bitsandbytes", "modelopt_fp4": "nvfp4",
    "modelopt_mxfp8": "mxfp8",
}  # fmt: skip
_BITS: Final[Mapping[str, int]] = {_FP8: 8, "mxfp8": 8, "nvfp4": 4, "mxfp4": 4}
# ModelOpt's algorithms, as vLLM knows them, by our names; a mixture of several is named by its layers.
_ALGORITHMS: Final[Mapping[str, str]] = {
    "FP8": _MODELOPT_FP8, "FP8_PER_CHANNEL_PER_TOKEN": _MODELOPT_FP8, "FP8_PB_WO": _BLOCK_FP8, "MXFP8": "mxfp8",
    "NVFP4": "nvfp4",
}  # fmt: skip
_MIXED: Final = "MIXED_PRECISION"
# Methods of vLLM's list (`QUANTIZATION_METHODS`) by our names. It refuses checkpoints of any other.
LOADED_BY_VLLM: Final = frozenset({
    "int8", "int8-w8a16", "int4", "w4a8-int8", "w4a8-fp8", "awq", "gptq", _FP8, _BLOCK_FP8, _MODELOPT_FP8, "fp8-fbgemm",
    "mxfp8", "nvfp4", "mxfp4", "compressed-tensors", "quark", "torchao", "fp_quant", "experts_int8", "moe_wna16",
    "humming",
})  # fmt: skip
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
    """`name` is empty for weights that aren't quantized, `bits` 0 where they aren't stated.

    `expert_bits` are those of a mixture's experts where they are stored in fewer; else 0.
    """

    name: str = ""
    bits: int = 0
    expert_bits: int = 0

    @property
    def variant(self) -> str:
        """The name of a variant that was published so, valid in tags; empty for weights that aren't quantized."""
        name = (
            f"{self.name}{_WIDTHS[self.name].format(self.bits)}" if self._has_widths else self.name
        )
        # Only kernels tell the kinds of FP8 apart.
        name = _FP8 if name.startswith(f"{_FP8}-") else name.replace("bitsandbytes", "bnb")
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
        if self.expert_bits and ".experts." in tensor and width:
            return width // self.expert_bits
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
    groups = [_compressed(*each, packing=_packing(stated, each)) for each in _weights(stated)]
    if groups:
        # Of several, the one with the fewest bits has the fewest kernels.
        return min(groups, key=lambda each: each.bits or _EIGHT)
    method = _method(stated)
    name = _NAMES.get(method, method)
    if name == "gptq" and "awq" in str(stated.get("packing_format") or stated.get("backend") or ""):
        name = "awq"
    if name == _FP8 and stated.get("weight_block_size"):
        name = _BLOCK_FP8
    if name in (_FP8, _BLOCK_FP8) and (bits := _expert_bits(config, stated)):
        return Quantization(name, _EIGHT, bits)
    if name == "bitsandbytes":
        return Quantization(
            name, _FOUR if stated.get("load_in_4bit") or stated.get("_load_in_4bit") else _EIGHT
        )
    bits = _BITS.get(name.partition("-")[0]) or _count(stated, "bits", "w_bit")
    return Quantization(name, bits)


def quantization_block(config: Mapping[str, Any]) -> int:
    """Weights that share a scale along the dimension that tensor parallelism cuts; 0 if one scale covers all."""
    found = quantization_config(config)
    groups = _weights(found)
    if groups:
        found, _ = groups[0]
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
    method = str(stated.get("quant_method") or "").lower()
    nested = stated.get("quantization")
    inner = nested if isinstance(nested, Mapping) else {}
    algorithm = str(stated.get("quant_algo") or inner.get("quant_algo") or "").upper()
    if algorithm == _MIXED:
        layers = stated.get("quantized_layers") or inner.get("quantized_layers")
        parts = layers.values() if isinstance(layers, Mapping) else ()
        each = {str(part.get("quant_algo")).upper() for part in parts if isinstance(part, Mapping)}
        algorithm = next((known for known in ("NVFP4", "MXFP8") if known in each), "FP8")
    if algorithm and (not method or method.startswith("modelopt")):
        # vLLM takes any of FP4 for NVFP4, and refuses what it doesn't know.
        found = "nvfp4" if "FP4" in algorithm else _ALGORITHMS.get(algorithm)
        return found or f"modelopt-{algorithm.lower()}"
    if method == "modelopt":
        return ""  # for the KV cache alone
    if not method and _count(stated, "bits") and _count(stated, "group_size"):
        return "mlx"  # its configs name no method
    return method.replace("compressed_tensors", "compressed-tensors")


def _weights(stated: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """The weights and input activations of each group of compressed-tensors."""
    groups, found = stated.get("config_groups"), []
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if isinstance(weights, Mapping):
            inputs = group.get("input_activations")
            found.append((weights, inputs if isinstance(inputs, Mapping) else {}))
    return found


def _packing(stated: Mapping[str, Any], group: tuple[Mapping[str, Any], Any]) -> str:
    """How a group is stored; mixtures state it for each group."""
    own = stated["config_groups"].values()
    named = [
        each.get("format")
        for each in own
        if isinstance(each, Mapping) and each.get("weights") is group[0]
    ]
    return str(next(filter(None, named), stated.get("format", "")))


def _compressed(
    weights: Mapping[str, Any], inputs: Mapping[str, Any], *, packing: str
) -> Quantization:
    bits, is_float = _count(weights, "num_bits"), weights.get("type") == "float"
    # MXFP4 scales groups of 32, NVFP4 of 16: the size tells them apart where the packing's name doesn't.
    if bits == _FOUR and is_float:
        floats = "mxfp4" if "mxfp4" in packing or weights.get("group_size") == 32 else "nvfp4"
        return Quantization(floats, bits)
    if bits == _FOUR:
        activations = "fp8" if inputs.get("type") == "float" else "int8"
        return Quantization(
            f"w4a8-{activations}" if _count(inputs, "num_bits") == _EIGHT else "int4", bits
        )
    # By the packing's name: the strategy doesn't tell MXFP8 from the other floats of eight bits.
    if is_float and "mxfp8" in packing:
        return Quantization("mxfp8", bits)
    if is_float:
        return Quantization(_BLOCK_FP8 if weights.get("strategy") == "block" else "fp8", bits)
    if bits == _EIGHT:
        return Quantization("int8" if inputs else "int8-w8a16", bits)
    return Quantization("compressed-tensors", bits)


def _expert_bits(config: Mapping[str, Any], stated: Mapping[str, Any]) -> int:
    """The bits of experts in DeepSeek's own format, whose classes state FP4 where a config says nothing."""
    if not str(config.get("model_type", "")).startswith("deepseek_v4"):
        return 0
    dtype = config.get("expert_dtype") or stated.get("expert_dtype") or "fp4"
    return _FOUR if dtype == "fp4" else 0


def _count(stated: Mapping[str, Any], *keys: str) -> int:
    return next(filter(None, (positive(stated.get(key)) for key in keys)), 0)
