"""Products of bfloat16 computed in float32: the same numbers, rounded once, whatever the size of the blocks."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.torch


def random(*shape: int) -> Any:
    import torch  # noqa: PLC0415

    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).bfloat16()


@pytest.mark.parametrize("block", [1, 24, 1 << 20])
@pytest.mark.parametrize("with_bias", [False, True])
def test_a_linear_layer_is_rounded_once(block: int, *, with_bias: bool) -> None:
    import torch  # noqa: PLC0415
    from torch.nn.functional import linear  # noqa: PLC0415

    from quantize.bf16_products import Float32Products  # noqa: PLC0415

    values, weight = random(2, 5, 8), random(13, 8)
    bias = random(13) if with_bias else None
    exact = linear(values.double(), weight.double(), None if bias is None else bias.double())
    with Float32Products(block):
        found = linear(values, weight, bias)
    assert found.dtype == torch.bfloat16
    # Half of a bfloat16's last digit, which is its 8th: the error of a single rounding.
    assert bool(((found.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-6).all())


def test_products_and_attention_are_rounded_once() -> None:
    import torch  # noqa: PLC0415
    from torch.nn.functional import scaled_dot_product_attention  # noqa: PLC0415

    from quantize.bf16_products import Float32Products  # noqa: PLC0415

    left, right = random(3, 4, 8), random(3, 8, 6)
    query, key, value = (random(1, 2, 7, 8) for _ in range(3))
    exact = left.double() @ right.double()
    attended = scaled_dot_product_attention(*(each.double() for each in (query, key, value)))
    with Float32Products():
        products = [left @ right, torch.matmul(left, right), torch.bmm(left, right)]
        found = scaled_dot_product_attention(query, key, value=value)
    for each, expected in [*((product, exact) for product in products), (found, attended)]:
        assert each.dtype == torch.bfloat16
        assert bool(((each.double() - expected).abs() <= expected.abs() * 2**-8 + 1e-5).all())


def test_other_numbers_and_calls_are_left_alone() -> None:
    import torch  # noqa: PLC0415
    from torch.nn.functional import linear  # noqa: PLC0415

    from quantize.bf16_products import Float32Products  # noqa: PLC0415

    values, weight = random(4, 8).float(), random(3, 8).float()
    with Float32Products():
        assert torch.equal(linear(values, weight), values @ weight.T)
        assert linear(values, weight).dtype == torch.float32
        assert (random(4, 8) + 1).dtype == torch.bfloat16


def test_a_gpu_uses_its_own_kernels() -> None:
    from quantize.bf16_products import Float32Products, fast_products  # noqa: PLC0415

    assert not isinstance(fast_products("cuda"), Float32Products)
