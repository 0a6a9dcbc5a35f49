"""Plans the output files of a quantization from a checkpoint's headers, byte offset by byte offset.

Computed before any weight is read: it can be printed, gives the size of the result, and leaves nothing to decide during
execution. Output shards mirror input shards. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modelimage.checkpoint_files import check_unique
from modelimage.safetensors import (
    DTYPE_BITS,
    LENGTH_BYTES,
    Header,
    TensorInfo,
    build_header,
    parse_header,
)
from quantize import formats
from quantize.architecture import TensorSelection, check_config, select
from quantize.experts import Matrix
from quantize.schemes import NUMERICS, Format, Numeric, Scheme

# Readers such as transformers reject a file that doesn't state its framework.
_METADATA = {"format": "pt"}


@dataclass(frozen=True, slots=True)
class Copy:
    """Bytes copied unchanged. Offsets count from the start of each file."""

    name: str
    source: int
    target: int
    size: int


@dataclass(frozen=True, slots=True)
class Conversion:
    """One matrix to quantize: where its tensor begins in the source file, and its parts in the target."""

    matrix: Matrix
    dtype: str
    source: int
    targets: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """One output file. `size` and `source_size` in bytes."""

    name: str
    header: bytes
    size: int
    source_size: int
    copies: tuple[Copy, ...]
    conversions: tuple[Conversion, ...]
    tensors: tuple[TensorInfo, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """The planned result of quantizing a checkpoint."""

    scheme: Scheme
    format: Format
    group: int
    architecture: str
    selection: TensorSelection
    shards: tuple[ShardPlan, ...]
    config: Mapping[str, Any]

    @property
    def numeric(self) -> Numeric:
        return NUMERICS[self.scheme]

    @property
    def kept(self) -> Mapping[str, str]:
        """Weight matrices left as published, with the reason."""
        return self.selection.kept

    @property
    def source_bytes(self) -> int:
        return sum(shard.source_size for shard in self.shards)

    @property
    def target_bytes(self) -> int:
        return sum(shard.size for shard in self.shards)

    @property
    def work_bytes(self) -> int:
        """Bytes of the source that are copied or quantized: the total of progress."""
        return sum(
            sum(copy.size for copy in shard.copies)
            + sum(c.matrix.elements * DTYPE_BITS[c.dtype] // 8 for c in shard.conversions)
            for shard in self.shards
        )

    @property
    def quantized(self) -> int:
        """The number of quantized matrices."""
        return sum(len(shard.conversions) for shard in self.shards)

    def weight_map(self) -> dict[str, str]:
        """Shard name by tensor name, sorted, as in `model.safetensors.index.json`."""
        pairs = ((tensor.name, shard.name) for shard in self.shards for tensor in shard.tensors)
        return dict(sorted(pairs))


def make_plan(
    config: Mapping[str, Any],
    shards: Mapping[str, Header],
    *,
    scheme: Scheme,
    format_: Format,
    group_size: int | None = None,
) -> Plan:
    """Plan the conversion of a checkpoint. `shards`: checked header by shard name.

    Raises InvalidCheckpoint, AlreadyQuantized, UnsupportedArchitecture, IncompatibleOptions.
    """
    architecture = check_config(config)
    check_unique(shards)
    # Over all shards at once: projections that servers fuse may lie in different files.
    numeric = NUMERICS[scheme]
    tensors = [tensor for header in shards.values() for tensor in header.tensors]
    selection = select(config, tensors, numeric=numeric, format_=format_, group_size=group_size)
    planned = tuple(
        _plan_shard(name, header, selection, format_, numeric) for name, header in shards.items()
    )
    announced = formats.quantization_config(
        scheme, format_, group=selection.group, ignored=selection.ignored
    )
    return Plan(
        scheme, format_, selection.group, architecture, selection, planned,
        formats.with_quantization(config, announced),
    )  # fmt: skip


def _plan_shard(
    name: str, header: Header, selection: TensorSelection, format_: Format, numeric: Numeric
) -> ShardPlan:
    entries: dict[str, tuple[str, tuple[int, ...]]] = {}
    for tensor in header.tensors:
        matrices = selection.matrices.get(tensor.name)
        if matrices is None:
            entries[tensor.name] = (tensor.dtype, tensor.shape)
        for matrix in matrices or ():
            for suffix, dtype, shape in formats.parts(format_, numeric, matrix, selection.group):
                entries[f"{matrix.module}.{suffix}"] = (dtype, shape)
    # Laid out before the offsets are taken: the target's order differs from the source's.
    written, out = lay_out(entries, header.metadata, name)
    where = {tensor.name: out.data_offset + tensor.start for tensor in out.tensors}
    copies, conversions = [], []
    for tensor in header.tensors:
        source = header.data_offset + tensor.start
        matrices = selection.matrices.get(tensor.name)
        if matrices is None:
            copies.append(Copy(tensor.name, source, where[tensor.name], tensor.size))
        for matrix in matrices or ():
            targets = {
                suffix: where[f"{matrix.module}.{suffix}"]
                for suffix, _, _ in formats.parts(format_, numeric, matrix, selection.group)
            }
            # Offsets from the start of the file: workers use pread and pwrite and never parse a header.
            conversions.append(Conversion(matrix, tensor.dtype, source, targets))
    size = out.data_offset + out.data_size
    source_size = header.data_offset + header.data_size
    return ShardPlan(
        name, written, size, source_size, tuple(copies), tuple(conversions), out.tensors
    )


def lay_out(
    entries: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str], name: str
) -> tuple[bytes, Header]:
    """Header bytes and header of a file with these tensors (name -> dtype, shape).

    Ordered like the reference writer, widest dtype first, which keeps all tensors aligned.
    """
    order = sorted(entries, key=lambda key: (-DTYPE_BITS[entries[key][0]], key))
    written = build_header({key: entries[key] for key in order}, {**_METADATA, **metadata})
    data = sum(_size(*entries[key]) for key in order)
    # Parsed back: a written header must pass the checks of a foreign one.
    parsed = parse_header(written[LENGTH_BYTES:], file_size=len(written) + data, name=name)
    return written, parsed


def _size(dtype: str, shape: Sequence[int]) -> int:
    elements = 1
    for length in shape:
        elements *= length
    return elements * DTYPE_BITS[dtype] // 8
