"""Linear layers of bf16 models on a CPU without bf16 instructions."""

from __future__ import annotations

import pytest
import torch

from quantize.engines import wide_linear
from quantize.engines.wide_linear import multiplies_bf16, widened

pytestmark = pytest.mark.torch
LINEAR = torch.nn.functional.linear


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)


@pytest.mark.parametrize("rows", [1, 3, 8192])
@pytest.mark.parametrize("with_bias", [False, True])
def test_the_sum_is_exact_and_rounded_once(
    rows: int, with_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As instructions for bf16 compute it, whatever part of the weight is widened at a time."""
    monkeypatch.setattr(wide_linear, "ROWS", rows)
    inputs, weight = drawn(2, 5, 64), drawn(7, 64)
    bias = drawn(7) if with_bias else None
    found = widened(LINEAR)(inputs, weight, bias)
    exact = LINEAR(inputs.double(), weight.double(), None if bias is None else bias.double())
    assert found.dtype is torch.bfloat16
    assert found.shape == (2, 5, 7)
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_other_types_are_multiplied_as_they_are(dtype: torch.dtype) -> None:
    inputs, weight = drawn(5, 64).to(dtype), drawn(7, 64).to(dtype)
    assert torch.equal(widened(LINEAR)(inputs, weight), LINEAR(inputs, weight))


def test_a_vector_is_multiplied_as_it_is() -> None:
    inputs, weight = drawn(64), drawn(7, 64)
    assert torch.equal(widened(LINEAR)(inputs, weight), LINEAR(inputs, weight))


@pytest.mark.parametrize(
    ("flags", "has"),
    [
        ("flags\t\t: fpu sse2 avx2 fma", False),
        ("flags\t\t: fpu avx512f avx512_bf16", True),
        ("flags\t\t: fpu avx512f amx_bf16 amx_tile", True),
        ("Features\t: fp asimd bf16 i8mm", True),
        ("", False),
    ],
)
def test_processors_say_what_they_multiply(flags: str, has: bool) -> None:
    assert multiplies_bf16(f"processor\t: 0\n{flags}\n") is has
