"""The files of a Hugging Face checkpoint: `config.json`, the weight index, and the headers of the weights.

The builder and the quantizer read a checkpoint by the same rules: index and shards must list the same tensors, each
tensor once. The safetensors grammar is in `modelimage.safetensors`. Reads headers and small JSON documents, never
tensors.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from modelimage import safetensors
from modelimage.durable import reading
from modelimage.errors import InvalidCheckpoint
from modelimage.safetensors import Header

CONFIG: Final = "config.json"
INDEX: Final = "model.safetensors.index.json"
# Far above the index of any published checkpoint.
MAX_JSON_BYTES: Final = 256 << 20
_AGAIN: Final = "Download the checkpoint again; if the error persists, ask its publisher."


@dataclass(frozen=True, slots=True)
class WeightIndex:
    """`model.safetensors.index.json`: the shard of each tensor. Shards are named relative to the index."""

    shards: Mapping[str, frozenset[str]]

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> WeightIndex:
        """Parse the index. Raises InvalidCheckpoint."""
        mapping = document.get("weight_map")
        # An empty index would describe a model without weights.
        if (
            not isinstance(mapping, Mapping)
            or not mapping
            or not all(isinstance(shard, str) for shard in mapping.values())
        ):
            raise InvalidCheckpoint(f"{INDEX} has no usable weight_map", hint=_AGAIN)
        shards: dict[str, set[str]] = {}
        for tensor, shard in mapping.items():
            shards.setdefault(shard, set()).add(tensor)
        return cls({shard: frozenset(tensors) for shard, tensors in sorted(shards.items())})


def index_document(headers: Mapping[str, Header]) -> dict[str, Any]:
    """The index of weight files with these headers, by their names, as transformers writes it."""
    return {
        "metadata": {"total_size": sum(header.data_size for header in headers.values())},
        "weight_map": {
            tensor.name: name for name, header in headers.items() for tensor in header.tensors
        },
    }


def unlisted_weights(index: WeightIndex, weights: Iterable[str]) -> list[str]:
    """Weight files in the root that the index doesn't list and engines don't load. Raises if a shard is missing."""
    root = [path for path in weights if "/" not in path]
    missing = sorted(set(index.shards) - set(root))
    if missing:
        raise InvalidCheckpoint(
            f"{INDEX} names {missing[0]!r}, which isn't there"
            + (f" ({len(missing)} shards are missing)" if len(missing) > 1 else ""),
            hint=_AGAIN,
        )
    return [path for path in root if path not in index.shards]


def check_shards(index: WeightIndex, headers: Mapping[str, Header]) -> None:
    """Raise InvalidCheckpoint unless index and shards list the same tensors in the same files."""
    for shard, promised in index.shards.items():
        held = {tensor.name for tensor in headers[shard].tensors}
        # Only the first tensor is reported: a missing shard would list thousands.
        for tensor in sorted(promised - held)[:1]:
            raise InvalidCheckpoint(
                f"{INDEX} lists tensor {tensor!r:.200} in {shard}, which doesn't contain it",
                hint=_AGAIN,
            )
        for tensor in sorted(held - promised)[:1]:
            raise InvalidCheckpoint(
                f"{shard} holds tensor {tensor!r:.200}, which {INDEX} doesn't name",
                hint=f"Download the checkpoint again, or build without the index: --exclude {INDEX}",
            )


def check_unique(headers: Mapping[str, Header]) -> None:
    """Raise InvalidCheckpoint if two files of one directory have a tensor of the same name."""
    seen: dict[tuple[str, str], str] = {}
    for path, header in headers.items():
        # Per directory: engines load the weights of one directory together.
        folder = path.rpartition("/")[0]
        for tensor in header.tensors:
            first = seen.setdefault((folder, tensor.name), path)
            if first != path:
                raise InvalidCheckpoint(
                    f"{first} and {path} both hold tensor {tensor.name!r:.200}",
                    hint="Remove the one that doesn't belong, or leave it out of a build with --exclude.",
                )


def read_header(location: Path, *, name: str | None = None) -> Header:
    """The validated header of a safetensors file. Raises InvalidCheckpoint, NotFound, AccessDenied.

    `name` is for messages, by default the file's own.
    """
    name = name or location.name
    with reading(location), location.open("rb") as file:
        # The size of the open file: the path may be replaced meanwhile.
        size = file.seek(0, 2)
        file.seek(0)
        prefix = file.read(safetensors.LENGTH_BYTES)
        length = safetensors.header_length(prefix, file_size=size, name=name)
        return safetensors.parse_header(file.read(length), file_size=size, name=name)


def take_header(pieces: Iterator[bytes], *, size: int, name: str) -> Header:
    """Read and validate the header of a safetensors file of `size` bytes from a stream. Raises InvalidCheckpoint."""
    data = _take(pieces, b"", min(size, safetensors.LENGTH_BYTES))
    length = safetensors.header_length(data[: safetensors.LENGTH_BYTES], file_size=size, name=name)
    stop = safetensors.LENGTH_BYTES + length
    data = _take(pieces, data, stop)[safetensors.LENGTH_BYTES : stop]
    return safetensors.parse_header(data, file_size=size, name=name)


def _take(pieces: Iterator[bytes], data: bytes, count: int) -> bytes:
    """Extend `data` from the stream until it has at least `count` bytes or the stream ends."""
    held = bytearray(data)
    while len(held) < count and (piece := next(pieces, None)) is not None:
        held += piece
    return bytes(held)


def read_json(location: Path, *, name: str) -> dict[str, Any]:
    """Read a JSON object of a checkpoint. Raises InvalidCheckpoint, NotFound, AccessDenied."""
    with reading(location), location.open("rb") as file:
        data = file.read(MAX_JSON_BYTES + 1)
    # Bounded while reading: the file may have grown since it was listed.
    if len(data) > MAX_JSON_BYTES:
        raise InvalidCheckpoint(f"{name} is larger than {MAX_JSON_BYTES} bytes", hint=_AGAIN)
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidCheckpoint(f"{name} is not valid JSON: {error}", hint=_AGAIN) from error
    if not isinstance(document, dict):
        raise InvalidCheckpoint(f"{name} is not a JSON object", hint=_AGAIN)
    return document
