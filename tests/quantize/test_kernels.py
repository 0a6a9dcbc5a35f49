"""The fused kernels against the plain numpy reference, byte for byte."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from quantize.kernels import kernel, storage
from quantize.schemes import NUMERICS, Scheme
from tests.examples import examples
from tests.quantize import reference

CASES = [
    (Scheme.INT4, 128),
    (Scheme.INT4, 64),
    (Scheme.INT4, 32),
    (Scheme.INT8, 0),
    (Scheme.INT8_W8A16, 0),
]


def run(bits: NDArray[Any], dtype: str, scheme: Scheme, group: int) -> tuple[Any, Any, Any, int]:
    numeric = NUMERICS[scheme]
    rows, columns = bits.shape
    values = np.zeros((rows, columns * numeric.bits // 8), np.uint8)
    scales = np.zeros((rows, columns // (group or columns)), np.uint16)
    sums = np.zeros((rows, 2))
    broken = kernel(dtype, numeric, group)(bits, values, scales, sums)
    return values, scales, sums, broken


def expected(weight: NDArray[np.float32], scheme: Scheme, group: int) -> tuple[bytes, bytes]:
    values, scales = reference.quantize(weight, NUMERICS[scheme].bits, group)
    if scheme is Scheme.INT8:
        return values.astype(np.int8).tobytes(), scales.tobytes()
    return reference.pack_words(values, NUMERICS[scheme].bits).tobytes(), scales.tobytes()


def encode(weight: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    if dtype == "BF16":
        return reference.to_bf16(weight)
    if dtype == "F16":
        return weight.astype(np.float16).view(np.uint16)
    return weight.view(np.uint32)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize(("scheme", "group"), CASES)
def test_bytes_equal_the_reference(dtype: str, scheme: Scheme, group: int) -> None:
    rng = np.random.default_rng(5)
    weight = rng.standard_normal((24, 256)).astype(np.float32) * np.float32(0.05)
    weight[3] = 0
    weight[4, :128] = 0
    weight[5] *= np.float32(1e-6)
    weight[6, 7] = 60000
    bits = encode(weight, dtype)
    values, scales, _, broken = run(bits, dtype, scheme, group)
    decoded = reference.decode(bits.tobytes(), dtype, weight.shape)
    assert (values.tobytes(), scales.tobytes()) == expected(decoded, scheme, group)
    assert broken == -1


@settings(max_examples=examples(60), deadline=None)  # the first call compiles
@given(data=st.binary(min_size=512, max_size=512), case=st.sampled_from(CASES[1:]))
def test_any_finite_bits_equal_the_reference(data: bytes, case: tuple[Scheme, int]) -> None:
    """Every bf16 bit pattern: subnormals, ties, the largest numbers."""
    bits = np.frombuffer(data, np.uint16).copy().reshape(4, 64)
    bits[(bits & 0x7F80) == 0x7F80] = 0x3F80
    scheme, group = case
    values, scales, _, broken = run(bits, "BF16", scheme, group)
    with np.errstate(over="ignore"):
        wanted = expected(reference.from_bf16(bits), scheme, group)
    assert (values.tobytes(), scales.tobytes()) == wanted
    assert broken == -1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_the_first_broken_row_is_named(dtype: str, bad: float) -> None:
    weight = np.ones((9, 64), np.float32)
    weight[4, 63] = weight[7, 0] = bad
    bits = weight.view(np.uint32) if dtype == "F32" else encode(np.ones_like(weight), dtype)
    if dtype != "F32":
        infinity = 0x7F80 if dtype == "BF16" else 0x7C00
        code = infinity + (1 if np.isnan(bad) else 0) + (0x8000 if bad < 0 else 0)
        bits[4, 63] = bits[7, 0] = code
    assert run(bits, dtype, Scheme.INT4, 64)[3] == 4


def test_energies_give_the_true_signal_to_noise_ratio() -> None:
    rng = np.random.default_rng(6)
    weight = rng.standard_normal((16, 512)).astype(np.float32)
    bits = encode(weight, "BF16")
    exact = reference.from_bf16(bits)
    _, _, sums, _ = run(bits, "BF16", Scheme.INT4, 128)
    restored = reference.dequantize(*reference.quantize(exact, 4, 128))
    assert sums[:, 0].sum() == pytest.approx(float((exact.astype(float) ** 2).sum()), rel=1e-5)
    error = float(((exact - restored).astype(float) ** 2).sum())
    assert sums[:, 1].sum() == pytest.approx(error, rel=1e-4)


def test_a_row_of_zeros_quantizes_to_zeros_with_the_least_scale() -> None:
    bits = np.zeros((2, 64), storage("BF16"))
    values, scales, sums, broken = run(bits, "BF16", Scheme.INT4, 64)
    assert set(values.ravel()) == {0x88}
    assert reference.from_bf16(scales).max() == pytest.approx(1e-7, rel=0.01)
    assert not sums.any()
    assert broken == -1
