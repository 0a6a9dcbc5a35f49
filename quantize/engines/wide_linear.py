"""Makes bf16 models fast on a CPU without bf16 instructions.

There, torch multiplies bf16 matrices three to five times as slowly as float32 ones. Widened to float32, the result is
what a processor with such instructions computes: bf16 inputs, a float32 sum, a bf16 output.
Imported by the workers beside it as a module of its own: an engine's environment may lack this distribution.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch

# Of a weight at a time: an output layer in float32 would take gigabytes.
ROWS: Final = 8192
# As Linux names them: x86's two, and Arm's.
_INSTRUCTIONS: Final = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


def widen_on_cpu() -> None:
    """Make this process's `torch.nn.functional.linear`, which linear layers call, use float32 where that is faster."""
    if not multiplies_bf16(Path("/proc/cpuinfo").read_text()):
        torch.nn.functional.linear = widened(torch.nn.functional.linear)


def multiplies_bf16(cpuinfo: str) -> bool:
    """Whether a processor has instructions for bf16, by the text of /proc/cpuinfo."""
    return not _INSTRUCTIONS.isdisjoint(cpuinfo.split())


def widened(linear: Callable[..., Any]) -> Callable[..., Any]:
    """`linear` that multiplies bf16 tensors of the CPU in float32; all others are given to it as they are."""

    def multiply(inputs: Any, weight: Any, bias: Any = None) -> Any:
        kinds = {(each.dtype, each.device.type, each.dim() > 1) for each in (inputs, weight)}
        if kinds != {(torch.bfloat16, "cpu", True)}:
            return linear(inputs, weight, bias)
        wide = inputs.float()
        weights = weight.split(ROWS)
        biases = [None] * len(weights) if bias is None else bias.float().split(ROWS)
        parts = [
            linear(wide, part.float(), added).to(torch.bfloat16)
            for part, added in zip(weights, biases, strict=True)
        ]
        return torch.cat(parts, dim=-1)

    return multiply
