"""Writes bfloat16 safetensors files tensor by tensor, in constant memory; the same tensors give the same bytes.

Independent of models; the header's grammar is in `modelimage.safetensors`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from modelimage.safetensors import build_header

BF16_BYTES = 2
Shape = tuple[int, ...]


def bf16_size(shapes: Mapping[str, Shape]) -> int:
    """Bytes of bfloat16 tensors with these shapes, without the header."""
    return sum(math.prod(shape) * BF16_BYTES for shape in shapes.values())


def to_bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Rounds finite float32 values to the nearest bfloat16, ties to even; returns the bits as uint16."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    lowest_kept_bit = (bits >> np.uint32(16)) & np.uint32(1)
    # One less than half of what is cut off, and one more where the kept part is odd: so ties become even.
    return ((bits + np.uint32(0x7FFF) + lowest_kept_bit) >> np.uint32(16)).astype(np.uint16)


def write_bf16(path: Path, shapes: Mapping[str, Shape], data: Iterable[NDArray[np.uint16]]) -> None:
    """Writes tensors of `shapes` to `path`; `data` yields their bits in the same order, in blocks of any length.

    Raises ValueError when the blocks don't add up to the tensors.
    """
    expected, written = bf16_size(shapes), 0
    with path.open("wb") as out:
        out.write(
            build_header(
                {name: ("BF16", shape) for name, shape in shapes.items()}, {"format": "pt"}
            )
        )
        for piece in data:
            written += out.write(np.ascontiguousarray(piece).data)
    if written != expected:
        raise ValueError(f"{path.name}: {written} bytes of data for tensors of {expected} bytes")
