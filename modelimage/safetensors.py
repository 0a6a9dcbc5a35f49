"""The safetensors header: 8 bytes of length, then JSON. Parses bytes to validated values; no files.

The format is in huggingface/safetensors' README ("Format"). The reference reader trusts the file; here the header of
an untrusted file is validated before anything is packed or quantized: bounds, overlaps, holes, dtypes, and that shape
times item size equals the span of the offsets.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from modelimage.bounds import MALFORMED
from modelimage.errors import InvalidCheckpoint

LENGTH_BYTES: Final = 8
# The limit of the reference implementation.
MAX_HEADER_BYTES: Final = 100_000_000
METADATA: Final = "__metadata__"

# Bits of one element.
DTYPE_BITS: Final[Mapping[str, int]] = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor: its dtype name, shape, and byte offsets, counted from the end of the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Header:
    """A validated header. `data_offset` is the file offset of the tensor data; tensors are in file order."""

    tensors: tuple[TensorInfo, ...]
    data_offset: int
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def data_size(self) -> int:
        """Bytes of all tensors."""
        return max((tensor.stop for tensor in self.tensors), default=0)


def header_length(prefix: bytes, *, file_size: int, name: str) -> int:
    """The header's length from a file's first 8 bytes. Raises InvalidCheckpoint if it can't be valid."""
    if len(prefix) < LENGTH_BYTES:
        raise _invalid(name, f"only {len(prefix)} bytes long")
    length = int.from_bytes(prefix[:LENGTH_BYTES], "little")
    if length > MAX_HEADER_BYTES:
        raise _invalid(name, f"header claims {length} bytes, above the limit of {MAX_HEADER_BYTES}")
    if LENGTH_BYTES + length > file_size:
        raise _invalid(name, f"truncated: header claims {length} bytes of a file of {file_size}")
    return length


def parse_header(data: bytes, *, file_size: int, name: str) -> Header:
    """Parse and validate header JSON (without the length prefix). `name` is for messages.

    Raises InvalidCheckpoint with the first error found.
    """
    # As in the reference reader, no space is allowed before the object.
    if not data.startswith(b"{"):
        raise _invalid(name, "header doesn't begin with '{'")
    try:
        document = json.loads(data.decode(), object_pairs_hook=_no_repeats)
    except (ValueError, RecursionError) as error:
        raise _invalid(name, f"header is not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise _invalid(name, "header is not a JSON object")
    metadata = document.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _invalid(name, f"{METADATA} is not a map of strings")
    # By `stop` too: an empty tensor begins where the next one does, and after that
    # one it would seem to overlap it.
    tensors = sorted(
        (_tensor(name, tensor, value) for tensor, value in document.items()),
        key=lambda tensor: (tensor.start, tensor.stop, tensor.name),
    )
    _check_layout(name, tensors, file_size - LENGTH_BYTES - len(data))
    return Header(tuple(tensors), LENGTH_BYTES + len(data), metadata)


def build_header(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> bytes:
    """The header bytes of a file with these tensors (name -> dtype, shape), contiguous and in this order.

    Padded with spaces to 8 bytes, as the reference writer does, to align the tensors.
    """
    document: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        size = math.prod(shape) * DTYPE_BITS[dtype] // 8
        document[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def _tensor(file: str, name: str, value: object) -> TensorInfo:
    try:
        dtype, shape, (start, stop) = value["dtype"], value["shape"], value["data_offsets"]  # type: ignore[index]
    except MALFORMED as error:
        raise _invalid(file, f"tensor {name!r:.200} is malformed") from error
    if not isinstance(shape, list) or not all(_natural(n) for n in (*shape, start, stop)):
        raise _invalid(file, f"tensor {name!r:.200} has a malformed shape or offsets")
    # A list or object as dtype can't be looked up: it isn't hashable.
    bits = DTYPE_BITS.get(dtype) if isinstance(dtype, str) else None
    if bits is None:
        raise _invalid(file, f"tensor {name!r:.200} has the unknown dtype {dtype!r:.40}")
    # Compared in bits: some dtypes have fewer than 8.
    if stop < start or _product(shape) * bits != (stop - start) * 8:
        raise _invalid(
            file,
            f"tensor {name!r:.200}: shape {shape!r:.200} of {dtype} isn't {stop - start} bytes",
        )
    return TensorInfo(name, dtype, tuple(shape), start, stop)


def _check_layout(file: str, tensors: list[TensorInfo], data_size: int) -> None:
    # Holes and trailing bytes could hide other content in the file; overlapping tensors could change each other.
    position = 0
    for tensor in tensors:
        if tensor.start < position:
            raise _invalid(file, f"tensor {tensor.name!r:.200} overlaps the one before it")
        if tensor.start > position:
            raise _invalid(file, f"there is a gap before tensor {tensor.name!r:.200}")
        position = tensor.stop
    if position > data_size:
        raise _invalid(
            file, f"truncated: tensors need {position} bytes, the file holds {data_size}"
        )
    if position < data_size:
        raise _invalid(file, f"{data_size - position} bytes follow the last tensor")


def _product(shape: list[int]) -> int:
    """The number of elements, or a number that no file reaches: a hostile shape must not cost time."""
    if 0 in shape:
        return 0
    elements = 1
    for length in shape:
        elements *= length
        if elements >> 62:
            break
    return elements


def _natural(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Repeated names are refused: two parsers could load different tensors under one name.
    document = dict(pairs)
    # A lone surrogate can't be written out again; encode raises ValueError.
    "".join(document).encode()
    if len(document) != len(pairs):
        raise ValueError("a name occurs twice")
    return document


def _invalid(file: str, what: str) -> InvalidCheckpoint:
    return InvalidCheckpoint(
        f"{file}: not a usable safetensors file: {what}",
        hint="Download the checkpoint again; if the error persists, ask its publisher.",
    )
