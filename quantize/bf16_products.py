"""Computes bfloat16 products of matrices in float32, for processors that can't multiply bfloat16.

Without such instructions torch multiplies bfloat16 one number at a time, two to three times slower than float32. Here
inputs become float32 and results are rounded to bfloat16 again: what a bfloat16 kernel computes, but for the order of
its sums. Weights stay bfloat16 in memory; a block of them at a time is converted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import torch
from torch.nn.functional import linear, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

BLOCK: Final = 1 << 24  # weights converted at once: 64 MiB of float32
_PRODUCTS: Final = frozenset(
    {
        torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.bmm, torch.Tensor.bmm,
        scaled_dot_product_attention,
    }
)  # fmt: skip


def fast_products(device: str) -> AbstractContextManager[object]:
    """Within the context, models on a device compute their bfloat16 products the fastest way that it has."""
    if device != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return nullcontext()
    return Float32Products()


class Float32Products(TorchFunctionMode):
    """Within the context, torch's products of bfloat16 tensors are computed in float32. Other calls are torch's own."""

    def __init__(self, block: int = BLOCK) -> None:
        super().__init__()
        self._block = block

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        if function is linear and args and _is_bf16(args[0]):
            return self._linear(*args, **named)
        if function in _PRODUCTS and args and _is_bf16(args[0]):
            exact = {name: _float32(value) for name, value in named.items()}
            return function(*map(_float32, args), **exact).to(torch.bfloat16)
        return function(*args, **named)

    def _linear(self, input: Any, weight: Any, bias: Any = None) -> Any:  # noqa: A002 - torch's name of it
        values, rows = input.float(), len(weight)
        out = input.new_empty((*input.shape[:-1], rows))
        step = max(1, self._block // weight.shape[1])
        for start in range(0, rows, step):
            part = slice(start, start + step)
            added = None if bias is None else bias[part].float()
            out[..., part] = linear(values, weight[part].float(), added)
        return out


def _is_bf16(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16


def _float32(value: Any) -> Any:
    return value.float() if _is_bf16(value) else value
