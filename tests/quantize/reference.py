"""Round to nearest written plainly in numpy, apart from the product's code: what its bytes must equal."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def to_bf16(values: Floats) -> NDArray[np.uint16]:
    """bf16 bits, rounded to nearest even, by arithmetic on halves of the bits."""
    bits = values.astype(np.float32).view(np.uint32)
    low, high = bits & 0xFFFF, bits >> 16
    up = (low > 0x8000) | ((low == 0x8000) & (high & 1 == 1))
    found: NDArray[np.uint16] = (high + up).astype(np.uint16)
    return found


def from_bf16(bits: NDArray[Any]) -> Floats:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def decode(data: bytes, dtype: str, shape: tuple[int, ...]) -> Floats:
    """A stored tensor as float32."""
    if dtype == "BF16":
        return from_bf16(np.frombuffer(data, np.uint16)).reshape(shape)
    plain = {"F16": np.float16, "F32": np.float32}[dtype]
    return np.frombuffer(data, plain).astype(np.float32).reshape(shape)


def quantize(weight: Floats, bits: int, group: int) -> tuple[NDArray[np.int32], NDArray[np.uint16]]:
    """Integer values [out, in] and bf16 bits of the scales [out, groups]; group 0 is a whole row."""
    rows, columns = weight.shape
    width = group or columns
    grouped = weight.reshape(rows, columns // width, width)
    half_step = np.float32(2 ** (bits - 1) - 0.5)
    absmax = np.abs(grouped).max(axis=2)
    scales = to_bf16(np.maximum(absmax / half_step, np.float32(1e-7)))
    reciprocal = np.float32(1) / from_bf16(scales)
    scaled = grouped * reciprocal[:, :, None]
    values = np.clip(np.rint(scaled), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1).astype(np.int32)
    return values.reshape(rows, columns), scales


def pack_words(values: NDArray[np.int32], bits: int) -> NDArray[np.int32]:
    """Unsigned values packed along the last axis into 32-bit words, first value lowest."""
    per_word = 32 // bits
    shifted = (values + 2 ** (bits - 1)).astype(np.uint64)
    rows, columns = values.shape
    words = np.zeros((rows, columns // per_word), np.uint64)
    for lane in range(per_word):
        words |= shifted[:, lane::per_word] << np.uint64(bits * lane)
    return words.astype(np.uint32).view(np.int32)


def dequantize(values: NDArray[np.int32], scales: NDArray[np.uint16]) -> Floats:
    steps = from_bf16(scales)
    wide = np.repeat(steps, values.shape[1] // steps.shape[1], axis=1)
    return values.astype(np.float32) * wide
