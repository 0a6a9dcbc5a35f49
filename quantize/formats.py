"""Tensors that each checkpoint format stores for a weight matrix, and its `quantization_config`.

compressed-tensors: vllm-project/compressed-tensors, `compressors/`, and what vLLM's
`CompressedTensorsConfig.from_config` reads. gptq: AutoGPTQ's checkpoint format version 1, as read by vLLM's
`AutoGPTQConfig.from_config`. Pure; shapes in elements.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from quantize.experts import Matrix
from quantize.schemes import Format, Numeric, Scheme

# One part of a quantized matrix: suffix, dtype and shape.
Part = tuple[str, str, tuple[int, ...]]

# The `qzeros` of symmetric 4-bit values: 7 in every nibble, since version 1 stores zero - 1.
GPTQ_ZEROS: Final = 0x77777777


def parts(format_: Format, numeric: Numeric, matrix: Matrix, group: int) -> tuple[Part, ...]:
    """The tensors that replace a matrix, values first, then scales."""
    rows, columns = matrix.rows, matrix.columns
    scales = columns // group if group else 1
    per_word = 32 // numeric.bits
    if format_ is Format.INT_QUANTIZED:
        return (("weight", "I8", (rows, columns)), ("weight_scale", "BF16", (rows, scales)))
    if format_ is Format.PACK_QUANTIZED:
        return (
            ("weight_packed", "I32", (rows, columns // per_word)),
            ("weight_scale", "BF16", (rows, scales)),
            ("weight_shape", "I64", (2,)),
        )
    return (
        ("qweight", "I32", (columns // per_word, rows)),
        ("scales", "BF16", (scales, rows)),
        ("qzeros", "I32", (scales, rows // per_word)),
        ("g_idx", "I32", (columns,)),
    )


def quantization_config(
    scheme: Scheme, format_: Format, *, group: int, ignored: Sequence[str]
) -> dict[str, Any]:
    """The `quantization_config` for a loader."""
    if format_ is Format.GPTQ:
        return _gptq_config(group, ignored)
    activations = None
    # W8A8 quantizes activations per token, while the model runs.
    if scheme is Scheme.INT8:
        activations = _arguments(8, strategy="token", dynamic=True)
    weights = _arguments(
        4 if scheme is Scheme.INT4 else 8,
        strategy="group" if group else "channel",
        group_size=group or None,
    )
    return {
        "quant_method": "compressed-tensors",
        "format": format_.value,
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": weights,
                "input_activations": activations,
                "output_activations": None,
                "format": format_.value,
            }
        },
        "ignore": list(ignored),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def with_quantization(config: Mapping[str, Any], quantization: Mapping[str, Any]) -> dict[str, Any]:
    """Add `quantization_config` to a checkpoint's config; everything else stays, in its order."""
    return {**config, "quantization_config": dict(quantization)}


def _arguments(
    bits: int, *, strategy: str, dynamic: bool = False, group_size: int | None = None
) -> dict[str, Any]:
    return {
        "num_bits": bits,
        "type": "int",
        "symmetric": True,
        "strategy": strategy,
        "group_size": group_size,
        "dynamic": dynamic,
        "actorder": None,
    }


def _gptq_config(group: int, ignored: Sequence[str]) -> dict[str, Any]:
    # GPTQModel's `dynamic`: `-:` and a regular expression exclude modules.
    skipped: dict[str, dict[str, Any]] = {
        f"-:^{name.replace('.', chr(92) + '.')}$": {} for name in ignored
    }
    # `lm_head` has a switch of its own.
    return {
        "quant_method": "gptq",
        "checkpoint_format": "gptq",
        "bits": 4,
        "group_size": group,
        "desc_act": False,
        "sym": True,
        "lm_head": False,
        "dynamic": {name: rule for name, rule in skipped.items() if "lm_head" not in name},
    }
