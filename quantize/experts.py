"""Splits fused mixture-of-experts tensors into matrices, by expert and projection. Pure.

Newer checkpoints hold all experts of a layer in one 3-D tensor, `experts.gate_up_proj` and `experts.down_proj`; some of
them transposed, [expert, in, out], for multiplication from the left. Quantized formats only have per-expert matrices,
which is also what servers load.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modelimage.model_config import text_config
from modelimage.safetensors import TensorInfo
from quantize.errors import UnsupportedArchitecture


@dataclass(frozen=True, slots=True)
class Matrix:
    """One weight matrix [rows = out, columns = in] of a module, within a source tensor.

    Element [r, c] is the tensor's element `offset + r * row_stride + c * column_stride`.
    """

    module: str
    tensor: str
    rows: int
    columns: int
    offset: int
    row_stride: int
    column_stride: int

    @property
    def transposed(self) -> bool:
        return self.column_stride != 1

    @property
    def elements(self) -> int:
        return self.rows * self.columns


def is_fused_experts(tensor: TensorInfo) -> bool:
    """Whether a tensor holds one projection of all experts of a layer."""
    segments = tensor.name.removesuffix(".weight").split(".")
    return (
        len(tensor.shape) == 3
        and len(segments) > 1
        and segments[-2] == "experts"
        and segments[-1] in ("gate_up_proj", "down_proj", "gate_proj", "up_proj")
    )


def split_experts(config: Mapping[str, Any], tensor: TensorInfo) -> tuple[Matrix, ...]:
    """The matrices of a fused experts tensor, expert by expert. Raises UnsupportedArchitecture."""
    # Split as others are, its columns would end up in the wrong projection.
    if config.get("model_type") == "gpt_oss":
        raise UnsupportedArchitecture(
            "gpt-oss interleaves gate and up columns and adds a bias per expert",
            hint="Package it as published: it comes in MXFP4.",
        )
    prefix, _, projection = tensor.name.removesuffix(".weight").rpartition(".")
    experts, first, second = tensor.shape
    transposed = _is_transposed(config, tensor, projection)
    rows, columns = (second, first) if transposed else (first, second)
    names = ("gate_proj", "up_proj") if projection == "gate_up_proj" else (projection,)
    # Gate and up are halves of one axis; an odd one can't be such a pair.
    if rows % len(names):
        raise _unknown_layout(tensor)
    part = rows // len(names)
    row_stride, column_stride = (1, second) if transposed else (second, 1)
    return tuple(
        Matrix(
            f"{prefix}.{expert}.{_spelled(config, name)}", tensor.name, part, columns,
            expert * first * second + index * part * row_stride, row_stride, column_stride,
        )
        for expert in range(experts)
        for index, name in enumerate(names)
    )  # fmt: skip


def _spelled(config: Mapping[str, Any], projection: str) -> str:
    """A projection's name in per-expert checkpoints of this family."""
    if config.get("model_type") in ("mixtral", "minimax_m2", "phimoe"):
        return {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}[projection]
    return projection


def _is_transposed(config: Mapping[str, Any], tensor: TensorInfo, projection: str) -> bool:
    """Whether the layout is [expert, in, out], judged by the axis that has the hidden size."""
    # The config doesn't state the layout; only the axis of the hidden size shows it.
    hidden = text_config(config).get("hidden_size")
    _, first, second = tensor.shape
    hidden_first, hidden_second = first == hidden, second == hidden
    if hidden_first == hidden_second:
        # Both axes have the hidden size: only the model family can decide.
        if not hidden_first:
            raise _unknown_layout(tensor)
        return config.get("model_type") in ("llama4", "llama4_text")
    return hidden_second if projection == "down_proj" else hidden_first


def _unknown_layout(tensor: TensorInfo) -> UnsupportedArchitecture:
    return UnsupportedArchitecture(
        f"{tensor.name} has the shape {list(tensor.shape)}, a layout of experts that isn't known",
        hint="Package it as published.",
    )
