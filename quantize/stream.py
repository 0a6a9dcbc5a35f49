"""Executes the plan of one shard, block of rows by block of rows.

Blocks are independent: each reads its rows, quantizes them and writes to offsets known beforehand, so any thread may do
any block in any order with the same result. Files are read with `pread` into one small buffer per thread instead of
being mapped: the input never counts as resident memory, a truncated file is an error instead of a SIGBUS, and the
buffer stays in cache. Unquantized tensors are copied inside the kernel.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from modelimage.durable import start_writeback
from modelimage.errors import InvalidCheckpoint
from quantize.errors import broken_weights
from quantize.formats import GPTQ_ZEROS
from quantize.kernels import kernel, storage
from quantize.plan import Conversion, Copy, ShardPlan
from quantize.schemes import Format, Numeric

BLOCK_BYTES: Final = 4 << 20
COPY_BYTES: Final = 64 << 20
# Where rows become columns (gptq's layout, transposed experts) blocks are wide, so that each of their scattered reads
# or writes is worth a system call.
WIDE_ROWS: Final = 2048
WIDE_BYTES: Final = 8 << 20

# What the kernel, a filesystem or a container's seccomp profile answers that doesn't copy.
_CANT_COPY_IN_KERNEL = frozenset(
    {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}
)


@dataclass(frozen=True, slots=True)
class Block:
    """A unit of work: part of a copy, or rows [start, stop) of a conversion. `cost` in source bytes."""

    job: Copy | Conversion
    start: int
    stop: int
    cost: int


@dataclass(frozen=True, slots=True)
class BlockResult:
    """The measurement of a block: the energies of a conversion's rows, zero for a copy."""

    block: Block
    signal: float
    error: float


def blocks(shard: ShardPlan, format_: Format) -> Iterator[Block]:
    """The blocks of a shard, in the order of their position in the source."""
    jobs: list[Copy | Conversion] = [*shard.copies, *shard.conversions]
    for job in sorted(jobs, key=_position):
        if isinstance(job, Copy):
            yield from _cut(job, job.size, COPY_BYTES, 1)
        else:
            row_bytes = job.matrix.columns * storage(job.dtype)().itemsize
            yield from _cut(job, job.matrix.rows, _rows_at_once(job, format_, row_bytes), row_bytes)


class ShardFiles:
    """The open source and target of one shard. Shared by threads; buffers are per thread."""

    def __init__(self, source: int, target: int, shard: ShardPlan, numeric: Numeric) -> None:
        self._source = source
        self._target = target
        self._shard = shard
        self._numeric = numeric
        # Per thread: workers convert blocks of one shard at the same time, and sharing buffers would need a lock.
        self._buffers = threading.local()

    def begin(self, format_: Format) -> None:
        """Give the target its final size, its header, and the tensors that depend on shapes alone."""
        # The full size first: threads write the blocks in any order.
        os.truncate(self._target, self._shard.size)
        write_at(self._target, self._shard.header, 0)
        for conversion in self._shard.conversions:
            self._write_constants(conversion, format_)

    def write_back(self) -> None:
        """Start writeback of what was written so far, so that finishing the shard has little left to do."""
        start_writeback(self._target)

    def run(self, block: Block, group: int) -> BlockResult:
        """Execute one block. Raises BrokenWeights, OSError; InvalidCheckpoint when the source was truncated."""
        if isinstance(block.job, Copy):
            source, target = block.job.source + block.start, block.job.target + block.start
            copy_range(self._source, source, self._target, target, size=block.stop - block.start)
            return BlockResult(block, 0.0, 0.0)
        return self._convert(block.job, block, group)

    def _convert(self, job: Conversion, block: Block, group: int) -> BlockResult:
        numeric, matrix = self._numeric, job.matrix
        rows, columns = block.stop - block.start, matrix.columns
        bits = self._read_rows(job, block.start, block.stop)
        values = self._buffer("values", np.uint8, (rows, columns * numeric.bits // 8))
        scales = self._buffer("scales", np.uint16, (rows, columns // (group or columns)))
        sums = self._buffer("sums", np.float64, (rows, 2))
        broken = kernel(job.dtype, numeric, group)(bits, values, scales, sums)
        if broken >= 0:
            raise broken_weights(self._shard.name, matrix.module, block.start + broken)
        if "qweight" in job.targets:
            self._write_columns(job.targets["qweight"], values.view(np.uint32), block, matrix.rows)
            self._write_columns(job.targets["scales"], scales, block, matrix.rows)
        else:
            name = "weight_packed" if numeric.packed else "weight"
            self._write_rows(job.targets[name], values, block.start)
            self._write_rows(job.targets["weight_scale"], scales, block.start)
        signal, error = sums.sum(axis=0)
        return BlockResult(block, float(signal), float(error))

    def _read_rows(self, job: Conversion, start: int, stop: int) -> NDArray[Any]:
        matrix, kind = job.matrix, storage(job.dtype)
        width = kind().itemsize
        if not matrix.transposed:
            bits = self._buffer("bits", kind, (stop - start, matrix.columns))
            self._read(bits, job.source + (matrix.offset + start * matrix.row_stride) * width)
            return bits
        # One read per column: a row's elements are scattered over the whole tensor.
        across = self._buffer("across", kind, (matrix.columns, stop - start))
        for column in range(matrix.columns):
            element = matrix.offset + column * matrix.column_stride + start
            self._read(across[column], job.source + element * width)
        bits = self._buffer("bits", kind, (stop - start, matrix.columns))
        np.copyto(bits, across.T)
        return bits

    def _read(self, into: NDArray[Any], offset: int) -> None:
        view = into.data.cast("B")
        while view:
            count = os.preadv(self._source, [view], offset)
            if count == 0:
                raise _shrank(self._shard.name)
            view, offset = view[count:], offset + count

    def _write_rows(self, base: int, array: NDArray[Any], start: int) -> None:
        write_at(self._target, array.data.cast("B"), base + start * array[0].nbytes)

    def _write_columns(self, base: int, array: NDArray[Any], block: Block, rows: int) -> None:
        """Write [rows of the block, n] into an [n, rows] tensor: one write per column."""
        turned = np.ascontiguousarray(array.T)
        width = array.itemsize
        for column, piece in enumerate(turned):
            write_at(
                self._target, piece.data.cast("B"), base + (column * rows + block.start) * width
            )

    def _write_constants(self, job: Conversion, format_: Format) -> None:
        matrix = job.matrix
        if format_ is Format.PACK_QUANTIZED:
            shape = np.array([matrix.rows, matrix.columns], "<i8")
            write_at(self._target, shape.tobytes(), job.targets["weight_shape"])
        elif format_ is Format.GPTQ:
            tensors = {t.name: t for t in self._shard.tensors}
            zeros = tensors[f"{matrix.module}.qzeros"]
            write_at(self._target, np.full(zeros.shape, GPTQ_ZEROS, "<i4").tobytes(),
                   job.targets["qzeros"])  # fmt: skip
            group = matrix.columns // zeros.shape[0]
            # Columns keep their order here (no act-order): a column's group follows from its number.
            index = np.arange(matrix.columns, dtype="<i4") // group
            write_at(self._target, index.astype("<i4").tobytes(), job.targets["g_idx"])

    def _buffer(self, role: str, kind: Any, shape: tuple[int, ...]) -> NDArray[Any]:
        """This thread's buffer for a role, as an array of the shape; reused from block to block."""
        size = int(np.prod(shape)) * np.dtype(kind).itemsize
        held: NDArray[np.uint8] | None = getattr(self._buffers, role, None)
        if held is None or held.nbytes < size:
            held = np.empty(size, np.uint8)
            setattr(self._buffers, role, held)
        array: NDArray[Any] = held[:size].view(kind).reshape(shape)
        return array


def copy_range(source: int, start: int, target: int, position: int, *, size: int) -> None:
    """Copy `size` bytes between descriptors, inside the kernel where possible. Raises InvalidCheckpoint, OSError."""
    while size:
        try:
            # Inside the kernel the bytes never pass through this process, and some filesystems share the blocks.
            count = os.copy_file_range(source, target, size, start, position)
        except OSError as error:
            if error.errno not in _CANT_COPY_IN_KERNEL:
                raise
            # Another filesystem, or one without copy_file_range.
            data = os.pread(source, min(size, BLOCK_BYTES), start)
            write_at(target, data, position)
            count = len(data)
        if count == 0:
            raise _shrank("the source")
        start, position, size = start + count, position + count, size - count


def write_at(target: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data` at an offset."""
    view = memoryview(data)
    while view:
        count = os.pwrite(target, view, offset)
        view, offset = view[count:], offset + count


def _rows_at_once(job: Conversion, format_: Format, row_bytes: int) -> int:
    fitting = max(1, BLOCK_BYTES // row_bytes)
    if job.matrix.transposed or format_ is Format.GPTQ:
        return max(fitting, min(WIDE_ROWS, WIDE_BYTES // row_bytes), 1)
    return fitting


def _cut(job: Copy | Conversion, total: int, step: int, unit_bytes: int) -> Iterator[Block]:
    for start in range(0, total, step):
        stop = min(start + step, total)
        yield Block(job, start, stop, (stop - start) * unit_bytes)


def _position(job: Copy | Conversion) -> tuple[int, int]:
    if isinstance(job, Copy):
        return job.source, 0
    return job.source, job.matrix.offset


def _shrank(name: str) -> InvalidCheckpoint:
    return InvalidCheckpoint(
        f"{name} became shorter while it was read", hint="Let the download finish, then try again."
    )
