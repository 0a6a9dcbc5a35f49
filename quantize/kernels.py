"""Round to nearest, in one pass over each row: scale, quantize, pack and measure, fused by numba.

    scale = bf16(max(absmax / divisor, 1e-7))      divisor: 7.5 for 4 bits, 127.5 for 8
    value = clamp(rint(weight * (1 / scale)))      in float32, with the reciprocal taken once

Every step is one correctly rounded float32 operation, so any implementation of these two lines gives the
same bytes on any machine and any number of threads. absmax is taken on the integer bits, which orders
floats by magnitude and lets NaN and infinity show up as the largest. The sums for the signal-to-noise
ratio may be reassociated (they are vectorized); they never reach the written values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from quantize.schemes import Numeric

MIN_SCALE: Final = 1e-7

Kernel = Callable[[NDArray[Any], NDArray[np.uint8], NDArray[np.uint16], NDArray[np.float64]], int]


@dataclass(frozen=True, slots=True)
class _Float:
    """A float dtype by its bits: how to take its magnitude, and what is no finite number."""

    storage: Any
    magnitude: int
    infinity: int


_FLOATS: Final = {
    "BF16": _Float(np.uint16, 0x7FFF, 0x7F80),
    "F16": _Float(np.uint16, 0x7FFF, 0x7C00),
    "F32": _Float(np.uint32, 0x7FFFFFFF, 0x7F800000),
}


def storage(dtype: str) -> Any:
    """The unsigned integer type that holds the bits of a float dtype."""
    return _FLOATS[dtype].storage


@lru_cache(maxsize=32)
def kernel(dtype: str, numeric: Numeric, group: int) -> Kernel:
    """A compiled kernel for a source dtype, an arithmetic, and a group (0: one scale per row).

    `kernel(bits, values, scales, sums)` takes the weights' bits [rows, columns] and fills `values`
    (bytes [rows, columns * bits / 8], as the formats store them), `scales` (bf16 bits [rows, groups])
    and `sums` ([rows, 2]: signal and error energy). Returns the first row that holds NaN or infinity,
    or -1. Releases the GIL.
    """
    return _build(_FLOATS[dtype], _to_float(dtype), numeric, group)


@njit(nogil=True, fastmath={"reassoc", "nsz"})  # type: ignore[untyped-decorator]
def _plus(total: Any, term: Any) -> Any:
    return total + term


@njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _to_bf16(value: Any) -> Any:
    """bf16 bits of a finite float32, to nearest, ties to even."""
    bits = np.float32(value).view(np.uint32)
    half = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return np.uint16((bits + half) >> np.uint32(16))


@njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _from_bf16(bits: Any) -> Any:
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


@njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _from_f16(bits: Any) -> Any:
    """Exact for all finite values: the exponent is rebased by a multiplication, subnormals included."""
    sign = (np.uint32(bits) & np.uint32(0x8000)) << np.uint32(16)
    rest = (np.uint32(bits) & np.uint32(0x7FFF)) << np.uint32(13)
    return np.uint32(sign | rest).view(np.float32) * np.float32(2.0**112)


@njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _from_f32(bits: Any) -> Any:
    return np.uint32(bits).view(np.float32)


def _to_float(dtype: str) -> Any:
    return {"BF16": _from_bf16, "F16": _from_f16, "F32": _from_f32}[dtype]


def _build(source: _Float, to_float: Any, numeric: Numeric, group: int) -> Kernel:
    """Compile with every parameter a constant, which is what lets the inner loops vectorize."""
    unsigned, magnitude, infinity = (
        source.storage,
        source.storage(source.magnitude),
        source.infinity,
    )
    divisor = np.float32(numeric.divisor)
    lowest, highest = np.float32(numeric.lowest), np.float32(numeric.highest)
    shift = np.int32(-numeric.lowest)
    nibbles = numeric.bits == 4
    # A packed byte holds value + 128; an I8 byte holds the value: they differ in the top bit.
    flip = np.uint8(0 if numeric.packed else 0x80)
    min_scale = np.float32(MIN_SCALE)

    @njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
    def convert(
        bits: NDArray[Any],
        values: NDArray[np.uint8],
        scales: NDArray[np.uint16],
        sums: NDArray[np.float64],
    ) -> int:
        rows, columns = bits.shape
        width = group if group else columns
        staged = np.empty(columns, np.uint8)
        broken = -1
        for r in range(rows):
            row, out = bits[r], values[r]
            signal = error = 0.0
            for g in range(columns // width):
                base = g * width
                absmax = unsigned(0)
                for i in range(width):
                    absmax = max(absmax, unsigned(row[base + i] & magnitude))
                if absmax >= infinity and broken < 0:
                    broken = r
                scale_bits = _to_bf16(max(to_float(absmax) / divisor, min_scale))
                scale = _from_bf16(scale_bits)
                inverse = np.float32(1.0) / scale
                noise = power = np.float32(0.0)
                for i in range(width):
                    scaled = to_float(row[base + i]) * inverse
                    value = min(max(np.rint(scaled), lowest), highest)
                    off = scaled - value
                    noise = _plus(noise, off * off)
                    power = _plus(power, scaled * scaled)
                    staged[base + i] = np.uint8(np.int32(value) + shift)
                scales[r, g] = scale_bits
                step = np.float64(scale) * np.float64(scale)
                signal += np.float64(power) * step
                error += np.float64(noise) * step
            if nibbles:
                for i in range(columns // 2):
                    out[i] = staged[2 * i] | np.uint8(staged[2 * i + 1] << np.uint8(4))
            else:
                for i in range(columns):
                    out[i] = staged[i] ^ flip
            sums[r, 0] = signal
            sums[r, 1] = error
        return broken

    compiled: Kernel = convert
    return compiled
