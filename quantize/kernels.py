"""Rounding to nearest, in one pass over each row: scale, quantize, pack and measure, fused by numba.

    scale = bf16(max(absmax / divisor, 1e-7))      divisor: 7.5 for 4 bits, 127.5 for 8
    value = clamp(rint(weight * (1 / scale)))      in float32, with the reciprocal taken once

Every step is one correctly rounded float32 operation, so any implementation of these two lines produces the same bytes
on any machine with any number of threads. absmax is taken on the integer bits: they order floats by magnitude, and NaN
and infinity come out largest. The sums for the signal-to-noise ratio may be reassociated (they are vectorized); they
never affect the written values.
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
    """A float dtype by its bits: storage type, mask of the magnitude, and the bits of infinity."""

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

    `kernel(bits, values, scales, sums)` takes the weights' bits [rows, columns] and fills `values` (bytes [rows,
    columns * bits / 8], in the formats' layout), `scales` (bf16 bits [rows, groups]) and `sums` ([rows, 2]: signal and
    error energy). Returns the first row with NaN or infinity, or -1. Releases the GIL.
    """
    return _build(_FLOATS[dtype], _to_float(dtype), numeric, group)


# For the sums only: reassociation must never reach the written values.
@njit(nogil=True, fastmath={"reassoc", "nsz", "contract"})  # type: ignore[untyped-decorator]
def _plus_square(total: Any, term: Any) -> Any:
    return total + term * term


@njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _to_bf16(value: Any) -> Any:
    """Round a finite float32 to bf16 bits, to nearest, ties to even."""
    bits = np.float32(value).view(np.uint32)
    half = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return np.uint16((bits + half) >> np.uint32(16))


@njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _from_bf16(bits: Any) -> Any:
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


@njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _from_f16(bits: Any) -> Any:
    """Exact for all finite values, subnormals included: a multiplication rebases the exponent."""
    sign = (np.uint32(bits) & np.uint32(0x8000)) << np.uint32(16)
    rest = (np.uint32(bits) & np.uint32(0x7FFF)) << np.uint32(13)
    # 112 is the difference between the biases of their exponents, 127 and 15.
    return np.uint32(sign | rest).view(np.float32) * np.float32(2.0**112)


@njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _from_f32(bits: Any) -> Any:
    return np.uint32(bits).view(np.float32)


def _to_float(dtype: str) -> Any:
    return {"BF16": _from_bf16, "F16": _from_f16, "F32": _from_f32}[dtype]


def _build(source: _Float, to_float: Any, numeric: Numeric, group: int) -> Kernel:
    """Compile with all parameters as constants, which lets the inner loops vectorize.

    A row is processed in phases (magnitudes, scales, values, packing), each a loop over the whole row in the
    first-level cache, so work done once per group stays cheap even for short groups.
    """
    magnitudes = _magnitudes(source)
    scaling = _scaling(to_float, np.float32(numeric.divisor))
    rounding = _rounding(to_float, numeric)
    packing = _packing(numeric)
    infinity = source.storage(source.infinity)
    unsigned = source.storage

    @njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
    def convert(
        bits: NDArray[Any],
        values: NDArray[np.uint8],
        scales: NDArray[np.uint16],
        sums: NDArray[np.float64],
    ) -> int:
        rows, columns = bits.shape
        width = group if group else columns
        groups = columns // width
        maxima = np.empty(groups, unsigned)
        steps, inverses = np.empty(groups, np.float32), np.empty(groups, np.float32)
        staged = np.empty(columns, np.uint8)
        broken = -1
        for r in range(rows):
            magnitudes(bits[r], width, maxima)
            if scaling(maxima, scales[r], steps, inverses) >= infinity and broken < 0:
                broken = r
            sums[r, 0], sums[r, 1] = rounding(bits[r], width, steps, inverses, staged)
            packing(staged, values[r])
        return broken

    compiled: Kernel = convert
    return compiled


def _magnitudes(source: _Float) -> Any:
    unsigned, mask = source.storage, source.storage(source.magnitude)

    @njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
    def magnitudes(row: Any, width: Any, maxima: Any) -> None:
        for g in range(len(maxima)):
            base = g * width
            absmax = unsigned(0)
            for i in range(width):
                absmax = max(absmax, unsigned(row[base + i] & mask))
            maxima[g] = absmax

    return magnitudes


def _scaling(to_float: Any, divisor: np.float32) -> Any:
    min_scale = np.float32(MIN_SCALE)

    @njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
    def scaling(maxima: Any, scale_bits: Any, steps: Any, inverses: Any) -> Any:
        """Fill the scales of a row's groups; return the largest magnitude of the row."""
        largest = maxima[0]
        for g in range(len(maxima)):
            largest = max(largest, maxima[g])
            scale_bits[g] = _to_bf16(max(to_float(maxima[g]) / divisor, min_scale))
            steps[g] = _from_bf16(scale_bits[g])
            inverses[g] = np.float32(1.0) / steps[g]
        return largest

    return scaling


def _rounding(to_float: Any, numeric: Numeric) -> Any:
    highest = np.float32(numeric.highest)
    # Adding 1.5 * 2**23 leaves a float32 no fraction bits, so the sum is rounded to an integer, ties to even, and its
    # lowest byte is that integer: two cheap operations instead of rounding and conversion. An even offset makes the
    # byte unsigned. No value is below the lowest: absmax / scale exceeds the highest by at most half a step and one
    # bf16 rounding, which rounds to -lowest at most.
    offset = np.float32(1.5 * 2**23 - numeric.lowest)

    @njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
    def rounding(row: Any, width: Any, steps: Any, inverses: Any, staged: Any) -> Any:
        """Fill a row's values, counted from the lowest; return its signal and error energy."""
        signal = error = 0.0
        for g in range(len(steps)):
            base = g * width
            inverse = inverses[g]
            # float32 within a group lets the loop vectorize; float64 across groups keeps the sums accurate.
            noise = power = np.float32(0.0)
            for i in range(width):
                scaled = to_float(row[base + i]) * inverse
                shifted = np.float32(min(scaled, highest) + offset)
                noise = _plus_square(noise, scaled - (shifted - offset))
                power = _plus_square(power, scaled)
                staged[base + i] = np.uint8(shifted.view(np.uint32))
            step = np.float64(steps[g]) * np.float64(steps[g])
            signal += np.float64(power) * step
            error += np.float64(noise) * step
        return signal, error

    return rounding


def _packing(numeric: Numeric) -> Any:
    nibbles = numeric.bits == 4
    # A packed byte holds value + 128, an I8 byte the value: they differ in the top bit.
    flip = np.uint8(0 if numeric.packed else 0x80)

    @njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
    def packing(staged: Any, out: Any) -> None:
        if nibbles:
            for i in range(len(out)):
                out[i] = staged[2 * i] | np.uint8(staged[2 * i + 1] << np.uint8(4))
        else:
            for i in range(len(out)):
                out[i] = staged[i] ^ flip

    return packing
