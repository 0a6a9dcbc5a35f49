"""Reads quantized matrices of any format back as float32 rows, to measure and compare them.

Plain numpy, independent of the kernels that write them and of models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from modelimage.checkpoint_files import read_header
from modelimage.errors import InvalidCheckpoint
from modelimage.safetensors import TensorInfo
from quantize.experts import Matrix

Floats = NDArray[np.float32]

ROWS: Final = 1024
_STORED: Final[Mapping[str, Any]] = {
    "BF16": np.uint16, "F16": np.float16, "F32": np.float32, "I8": np.int8, "I32": np.int32,
    "I64": np.int64, "U8": np.uint8,
}  # fmt: skip


class TensorFile:
    """Tensors of one safetensors file, read on demand."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header = read_header(path)
        self.tensors: dict[str, TensorInfo] = {t.name: t for t in self.header.tensors}

    def raw(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Elements [start, stop) of the flattened tensor; bf16 as its bits."""
        tensor = self.tensors[name]
        kind = np.dtype(_STORED[tensor.dtype])
        count = (tensor.elements if stop is None else stop) - start
        offset = self.header.data_offset + tensor.start + start * kind.itemsize
        data: NDArray[Any] = np.fromfile(self.path, kind, count, offset=offset)
        # fromfile returns fewer elements at the end of a file instead of raising.
        if data.size != count:
            raise InvalidCheckpoint(f"{self.path.name} is shorter than its header says")
        return data

    def floats(self, name: str, start: int = 0, stop: int | None = None) -> Floats:
        """Elements [start, stop) of the flattened tensor as float32."""
        return as_float32(self.raw(name, start, stop), self.tensors[name].dtype)

    def matrix(self, name: str) -> NDArray[Any]:
        """A whole tensor in its shape."""
        return self.raw(name).reshape(self.tensors[name].shape)


@dataclass(frozen=True, slots=True)
class Quantized:
    """One quantized matrix: signed `values` [rows, columns] and `scales` [rows, groups]."""

    values: NDArray[np.int8]
    scales: Floats

    def rows(self, start: int, stop: int) -> Floats:
        """Rows [start, stop) as float32."""
        values, scales = self.values[start:stop], self.scales[start:stop]
        width = values.shape[1] // scales.shape[1]
        grouped = values.reshape(values.shape[0], scales.shape[1], width)
        out: Floats = (grouped * scales[:, :, None]).reshape(values.shape)
        return out


def read_quantized(file: TensorFile, module: str) -> Quantized:
    """Read a module's quantized matrix in any supported format. Raises InvalidCheckpoint."""
    names = file.tensors
    if f"{module}.qweight" in names:
        # GPTQ stores [in, out], all other formats [out, in]. Its zero points and `g_idx` say nothing here:
        # values are symmetric, and columns in their order.
        packed = np.ascontiguousarray(file.matrix(f"{module}.qweight").T)
        scales = _float_matrix(file, f"{module}.scales").T
        return Quantized(_unpack(packed, 4), np.ascontiguousarray(scales))
    scales = _float_matrix(file, f"{module}.weight_scale")
    if f"{module}.weight_packed" in names:
        # The packed width alone doesn't tell 4 bits from 8.
        columns = int(file.raw(f"{module}.weight_shape")[1])
        packed = file.matrix(f"{module}.weight_packed")
        bits = 32 * packed.shape[1] // columns
        return Quantized(_unpack(packed, bits), scales)
    return Quantized(file.matrix(f"{module}.weight"), scales)


def source_rows(file: TensorFile, matrix: Matrix) -> Iterator[tuple[int, int, Floats]]:
    """Yield a source matrix as (start, stop, rows), a thousand rows at a time."""
    # A transposed matrix is read as a whole: its rows are scattered over all of its bytes.
    if matrix.transposed:
        stop = matrix.offset + (matrix.columns - 1) * matrix.column_stride + matrix.rows
        flat = file.floats(matrix.tensor, matrix.offset, stop)
        view = np.lib.stride_tricks.as_strided(
            flat,
            (matrix.rows, matrix.columns),
            (matrix.row_stride * 4, matrix.column_stride * 4),
        )
        yield 0, matrix.rows, np.ascontiguousarray(view)
        return
    for start in range(0, matrix.rows, ROWS):
        stop = min(start + ROWS, matrix.rows)
        first = matrix.offset + start * matrix.row_stride
        last = matrix.offset + stop * matrix.row_stride
        yield start, stop, file.floats(matrix.tensor, first, last).reshape(-1, matrix.columns)


def as_float32(data: NDArray[Any], dtype: str) -> Floats:
    """Stored elements as float32."""
    # bf16 is the upper half of a float32.
    if dtype == "BF16":
        return (data.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return data.astype(np.float32)


def _float_matrix(file: TensorFile, name: str) -> Floats:
    return file.floats(name).reshape(file.tensors[name].shape)


def _unpack(words: NDArray[np.int32], bits: int) -> NDArray[np.int8]:
    """Unpack words [rows, n] into signed values [rows, n * 32 / bits], lowest bits first."""
    if bits not in (4, 8):
        raise InvalidCheckpoint(f"packed weights have {bits} bits, not 4 or 8")
    # Values are stored with an offset: 128 for 8 bits, 8 for 4. Flipping the top bit subtracts 128.
    unsigned = np.ascontiguousarray(words).view(np.uint8)
    if bits == 8:
        return (unsigned ^ np.uint8(0x80)).view(np.int8)
    out = np.empty((unsigned.shape[0], unsigned.shape[1] * 2), np.int8)
    out[:, 0::2] = (unsigned & np.uint8(0x0F)).view(np.int8) - np.int8(8)
    out[:, 1::2] = (unsigned >> np.uint8(4)).view(np.int8) - np.int8(8)
    return out
