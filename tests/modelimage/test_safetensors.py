"""The safetensors header grammar, against the reference writer's rules and hostile headers."""

from __future__ import annotations

import contextlib
import json
import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelimage.errors import InvalidCheckpoint
from modelimage.safetensors import (
    DTYPE_BITS,
    LENGTH_BYTES,
    MAX_HEADER_BYTES,
    build_header,
    header_length,
    parse_header,
)

_names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(
    lambda name: name != "__metadata__"
)
_whole_byte_dtypes = st.sampled_from([name for name, bits in DTYPE_BITS.items() if bits % 8 == 0])
_tensors = st.dictionaries(
    _names,
    st.tuples(_whole_byte_dtypes, st.lists(st.integers(0, 9), max_size=4).map(tuple)),
    max_size=6,
)


def parse(document: object, data_size: int = 0) -> object:
    text = json.dumps(document).encode()
    return parse_header(text, file_size=LENGTH_BYTES + len(text) + data_size, name="f")


@given(_tensors, st.dictionaries(_names, _names, max_size=2))
def test_a_header_is_parsed_as_it_is_built(
    tensors: dict[str, tuple[str, tuple[int, ...]]], metadata: dict[str, str]
) -> None:
    built = build_header(tensors, metadata)
    assert len(built) % 8 == 0
    size = sum(DTYPE_BITS[dtype] * math.prod(shape) // 8 for dtype, shape in tensors.values())
    length = header_length(built[:8], file_size=len(built) + size, name="f")
    header = parse_header(built[8 : 8 + length], file_size=len(built) + size, name="f")
    assert {t.name: (t.dtype, t.shape) for t in header.tensors} == tensors
    assert (header.metadata, header.data_offset, header.data_size) == (metadata, len(built), size)


def tensor(start: int, stop: int, shape: list[int] | None = None, dtype: str = "U8") -> object:
    return {
        "dtype": dtype,
        "shape": [stop - start] if shape is None else shape,
        "data_offsets": [start, stop],
    }


@pytest.mark.parametrize(
    ("document", "data_size", "says"),
    [
        ({"a": tensor(0, 4), "b": tensor(2, 6)}, 6, "overlaps"),
        ({"a": tensor(0, 4), "b": tensor(6, 8)}, 8, "gap"),
        ({"a": tensor(0, 4)}, 3, "truncated"),
        ({"a": tensor(0, 4)}, 5, "follow the last"),
        ({"a": tensor(0, 4, [3])}, 4, "isn't 4 bytes"),
        ({"a": tensor(4, 0, [0])}, 4, "isn't"),
        ({"a": tensor(0, 4, [-2, -2])}, 4, "malformed shape"),
        ({"a": tensor(0, 4, [True, 4])}, 4, "malformed shape"),
        ({"a": tensor(0, 4, dtype="X9")}, 4, "unknown dtype"),
        ({"a": {"dtype": [], "shape": [4], "data_offsets": [0, 4]}}, 4, "unknown dtype"),
        ({"a": {"dtype": "U8", "shape": [4]}}, 4, "malformed"),
        ({"a": {"dtype": "U8", "shape": [4], "data_offsets": [0]}}, 4, "malformed"),
        ({"a": 1}, 0, "malformed"),
        ({"__metadata__": {"a": 1}}, 0, "not a map of strings"),
        ({"\ud800": tensor(0, 4)}, 4, "not valid JSON"),
        ([1], 0, "begin with"),
    ],
)
def test_a_header_that_lies_is_refused(document: object, data_size: int, says: str) -> None:
    with pytest.raises(InvalidCheckpoint, match=says):
        parse(document, data_size)


def test_a_name_twice_is_refused() -> None:
    one = json.dumps(tensor(0, 1))
    text = f'{{"a":{one},"a":{one}}}'.encode()
    with pytest.raises(InvalidCheckpoint, match="twice"):
        parse_header(text, file_size=len(text) + 9, name="f")


@pytest.mark.parametrize(
    ("prefix", "says"),
    [
        (b"", "only 0 bytes"),
        (b"1234567", "only 7 bytes"),
        ((100 << 30).to_bytes(8, "little"), "above the limit"),
        ((MAX_HEADER_BYTES + 1).to_bytes(8, "little"), "above the limit"),
        ((93).to_bytes(8, "little"), "truncated"),
    ],
)
def test_a_length_that_cannot_be_is_refused(prefix: bytes, says: str) -> None:
    with pytest.raises(InvalidCheckpoint, match=says):
        header_length(prefix, file_size=100, name="f")
    assert header_length((92).to_bytes(8, "little"), file_size=100, name="f") == 92


@given(st.binary(max_size=100), st.integers(0, 200))
def test_any_header_is_parsed_or_refused_as_an_invalid_checkpoint(data: bytes, size: int) -> None:
    for text in (data, b"{" + data + b"}"):
        with contextlib.suppress(InvalidCheckpoint):
            parse_header(text, file_size=size, name="f")


def test_a_shape_with_a_million_dimensions_costs_no_time() -> None:
    hostile = tensor(0, 4, [(1 << 62) - 1] * 1_000_000)
    started = time.process_time()
    with pytest.raises(InvalidCheckpoint) as caught:
        parse({"a": hostile}, 4)
    assert time.process_time() - started < 10
    assert len(str(caught.value)) < 1000
