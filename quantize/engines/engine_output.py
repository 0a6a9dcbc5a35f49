"""Collects the quantized tensors from another engine's output, and nothing else.

Engines write temporary paths, dates and versions into their results, rename files and change tensors that should stay
as published. So the result is assembled again: planned shards and names, and unquantized tensors from the source, byte
by byte. Only a method that rescales (AWQ, SmoothQuant) has reason to change more, namely the norms before the matrices:
then those come from its output too.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from modelimage.errors import EngineFailed
from modelimage.safetensors import TensorInfo
from quantize import formats
from quantize.dequantize import TensorFile, read_quantized, source_rows
from quantize.plan import Conversion, Plan, ShardPlan, lay_out
from quantize.sqnr import Energies
from quantize.staging_dir import Staging
from quantize.stream import copy_range, write_at


@dataclass(frozen=True, slots=True)
class _Piece:
    """A range of bytes to copy: source file, offset there, offset in the target, size."""

    path: Path
    source: int
    target: int
    size: int


def collect(
    source: Path, made: Path, plan: Plan, staging: Staging, *, rescaled: bool
) -> dict[str, Energies]:
    """Write the planned shards from the source and an engine's output; returns the energies of every matrix.

    Raises EngineFailed when the engine omitted a matrix or changed its shape.
    """
    # By name over all files: engines distribute tensors over shards as they like.
    found = _tensors(made)
    energies: dict[str, Energies] = {}
    for shard in plan.shards:
        temporary = staging.directory / f"{shard.name}.tmp"
        # Under a temporary name: an interrupted shard must not look finished to the next run.
        _write(temporary, *_pieces(source / shard.name, shard, plan, found, rescaled=rescaled))
        staging.finish(temporary, shard.name)
        original, result = (
            TensorFile(source / shard.name),
            TensorFile(staging.directory / shard.name),
        )
        for conversion in shard.conversions:
            energies[conversion.matrix.module] = (_measure_rescaled if rescaled else _measure)(
                original, result, conversion
            )
    return energies


def _tensors(directory: Path) -> dict[str, tuple[Path, int, TensorInfo]]:
    """Every tensor that an engine wrote: file, offset of its bytes, and header entry."""
    files = [TensorFile(path) for path in sorted(directory.glob("*.safetensors"))]
    return {
        tensor.name: (file.path, file.header.data_offset + tensor.start, tensor)
        for file in files
        for tensor in file.header.tensors
    }


def _pieces(
    source: Path,
    shard: ShardPlan,
    plan: Plan,
    found: Mapping[str, tuple[Path, int, TensorInfo]],
    *,
    rescaled: bool,
) -> tuple[bytes, list[_Piece]]:
    """A shard's header, with the engine's dtypes for scales, and the ranges to copy."""
    wanted = _wanted(shard, plan)
    entries = {t.name: (t.dtype, t.shape) for t in shard.tensors}
    for name, shape in wanted.items():
        if name not in found or found[name][2].shape != shape:
            raise EngineFailed(
                f"the engine didn't quantize {name.rpartition('.')[0]} as planned",
                hint="Use --engine rtn for this architecture.",
            )
        # The shape must be as planned; the dtype of scales is the engine's choice.
        entries[name] = (found[name][2].dtype, shape)
    written, header = lay_out(entries, {}, shard.name)
    where = {tensor.name: header.data_offset + tensor.start for tensor in header.tensors}
    copied = [_Piece(source, c.source, where[c.name], c.size) for c in shard.copies]
    if rescaled:
        copied = [
            _from_engine(piece, c.name, entries, found)
            for piece, c in zip(copied, shard.copies, strict=True)
        ]
    taken = [
        _Piece(found[name][0], found[name][1], where[name], found[name][2].size) for name in wanted
    ]
    return written, [*copied, *taken]


def _from_engine(
    piece: _Piece,
    name: str,
    entries: Mapping[str, tuple[str, tuple[int, ...]]],
    found: Mapping[str, tuple[Path, int, TensorInfo]],
) -> _Piece:
    """The engine's version of an unquantized tensor, if it has one of the same dtype and shape."""
    # The header is already laid out: a tensor of another size would shift all that follow.
    if name not in found or (found[name][2].dtype, found[name][2].shape) != entries[name]:
        return piece
    return replace(piece, path=found[name][0], source=found[name][1])


def _wanted(shard: ShardPlan, plan: Plan) -> dict[str, tuple[int, ...]]:
    """The quantized parts of a shard and their shapes."""
    return {
        f"{conversion.matrix.module}.{suffix}": shape
        for conversion in shard.conversions
        for suffix, _, shape in formats.parts(
            plan.format, plan.numeric, conversion.matrix, plan.group
        )
    }


def _write(target: Path, header: bytes, pieces: list[_Piece]) -> None:
    descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        write_at(descriptor, header, 0)
        for piece in pieces:
            source = os.open(piece.path, os.O_RDONLY)
            try:
                # In the kernel: the weights needn't pass through this process, and some filesystems share the blocks.
                copy_range(source, piece.source, descriptor, piece.target, size=piece.size)
            finally:
                os.close(source)
    finally:
        os.close(descriptor)


def _measure(original: TensorFile, result: TensorFile, conversion: Conversion) -> Energies:
    matrix = conversion.matrix
    quantized = read_quantized(result, matrix.module)
    # In float64: sums over millions of squares would lose the small errors in float32.
    total = Energies()
    for start, stop, rows in source_rows(original, matrix):
        exact = rows.astype(np.float64)
        error = exact - quantized.rows(start, stop)
        total += Energies(float((exact * exact).sum()), float((error * error).sum()))
    return total


def _measure_rescaled(original: TensorFile, result: TensorFile, conversion: Conversion) -> Energies:
    """Like `_measure`, up to one factor per column and one per row, fitted by least squares.

    A method that rescales multiplies columns, and divides rows of the matrix before; the
    rest after the fit is the rounding error.
    """
    matrix = conversion.matrix
    # As a whole, not in blocks: the fit needs complete columns.
    exact = np.concatenate([rows for _, _, rows in source_rows(original, matrix)])
    found = read_quantized(result, matrix.module).rows(0, matrix.rows)
    for axis in (0, 1):
        energy = (exact * exact).sum(axis=axis, keepdims=True, dtype=np.float64)
        common = (exact * found).sum(axis=axis, keepdims=True, dtype=np.float64)
        exact = exact * (common / np.maximum(energy, np.finfo(np.float32).tiny)).astype(np.float32)
    error = (found - exact).astype(np.float64)
    wide = exact.astype(np.float64)
    return Energies(float((wide * wide).sum()), float((error * error).sum()))
