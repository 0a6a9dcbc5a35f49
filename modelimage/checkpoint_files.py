"""The files of a Hugging Face checkpoint: `config.json`, the weight index, and the headers of the weights.

The builder and the quantizer read a checkpoint by the same rules: index and shards must list the same tensors, each
tensor once. The safetensors grammar is in `modelimage.safetensors`. Reads headers and small JSON documents, never
tensors.
"""

from __future__ import annotations

import json
import posixpath
import shlex
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from modelimage import safetensors
from modelimage.durable import reading
from modelimage.errors import InvalidCheckpoint
from modelimage.lfs_pointers import MAX_BYTES as MAX_POINTER_BYTES
from modelimage.lfs_pointers import refuse_pointer
from modelimage.safetensors import Header
from modelimage.weight_names import parse_weight_name, set_pattern

CONFIG: Final = "config.json"
INDEX: Final = "model.safetensors.index.json"
# Far above the index of any published checkpoint.
MAX_JSON_BYTES: Final = 256 << 20
_AGAIN: Final = "Download the checkpoint again; if the error persists, ask its publisher."


@dataclass(frozen=True, slots=True)
class WeightIndex:
    """An index such as `model.safetensors.index.json`: the shard of each tensor.

    `name` is its path in the checkpoint, and shards are paths there too; the document names them relative to itself.
    """

    shards: Mapping[str, frozenset[str]]
    name: str = INDEX

    @classmethod
    def parse(cls, document: Mapping[str, Any], *, name: str = INDEX) -> WeightIndex:
        """Parse the index. Raises InvalidCheckpoint."""
        mapping = document.get("weight_map")
        # An empty index would describe a model without weights.
        if (
            not isinstance(mapping, Mapping)
            or not mapping
            or not all(isinstance(shard, str) for shard in mapping.values())
        ):
            raise InvalidCheckpoint(f"{name} has no usable weight_map", hint=_AGAIN)
        shards: dict[str, set[str]] = {}
        folder = posixpath.dirname(name)
        for tensor, shard in mapping.items():
            path = posixpath.normpath(posixpath.join(folder, shard))
            if path.startswith(("../", "/")):
                raise InvalidCheckpoint(
                    f"{name} names {shard[:200]!r}, which is outside the checkpoint", hint=_AGAIN
                )
            shards.setdefault(path, set()).add(tensor)
        return cls({path: frozenset(tensors) for path, tensors in sorted(shards.items())}, name)

    @property
    def tensors(self) -> Mapping[str, str]:
        """The shard of each tensor."""
        return {tensor: shard for shard, held in self.shards.items() for tensor in held}


def index_document(headers: Mapping[str, Header]) -> dict[str, Any]:
    """The index of weight files with these headers, by their names, as transformers writes it."""
    return {
        "metadata": {"total_size": sum(header.data_size for header in headers.values())},
        "weight_map": {
            tensor.name: name for name, header in headers.items() for tensor in header.tensors
        },
    }


def check_present(index: WeightIndex, paths: Container[str]) -> None:
    """Raise InvalidCheckpoint if a shard that the index names is not among the files."""
    missing = [shard for shard in index.shards if shard not in paths]
    if missing:
        raise InvalidCheckpoint(
            f"{index.name} names {missing[0]!r}, which isn't there"
            + (f" ({len(missing)} shards are missing)" if len(missing) > 1 else ""),
            hint=f"Download the checkpoint again. If the index is a stale one: --exclude {index.name}",
        )


def unlisted_weights(index: WeightIndex, weights: Iterable[str]) -> list[str]:
    """Weight files beside the index that it doesn't list and engines don't load.

    An index under transformers' name speaks for its whole folder, any other for files of its own name. Adapters are
    loaded without an index.
    """
    folder, _, own = index.name.rpartition("/")
    base = parse_weight_name(index.name.partition(".safetensors")[0] + ".safetensors").base
    found = []
    for path in weights:
        name = parse_weight_name(path)
        beside = path.rpartition("/")[0] == folder and path not in index.shards
        if beside and (name.base == base or (own == INDEX and not name.is_adapter)):
            found.append(path)
    return found


def check_shards(index: WeightIndex, headers: Mapping[str, Header]) -> None:
    """Raise InvalidCheckpoint unless each tensor is where the index names it, and each that is there is named.

    A tensor may also be in another shard: `repeated_tensors` judges that.
    """
    named = index.tensors
    for shard, promised in index.shards.items():
        held = {tensor.name for tensor in headers[shard].tensors}
        # Only the first tensor is reported: a missing shard would list thousands.
        for tensor in sorted(promised - held)[:1]:
            raise InvalidCheckpoint(
                f"{index.name} lists tensor {tensor!r:.200} in {shard}, which doesn't contain it",
                hint=_AGAIN,
            )
        for tensor in sorted(held - named.keys())[:1]:
            raise InvalidCheckpoint(
                f"{shard} holds tensor {tensor!r:.200}, which {index.name} doesn't name",
                hint=f"Download the checkpoint again, or build without the index: --exclude {index.name}",
            )


def repeated_tensors(
    headers: Mapping[str, Header],
    indexes: Iterable[WeightIndex] = (),
    origins: Mapping[str, str] | None = None,
) -> list[str]:
    """Sentences about tensors that several shards of one set hold: engines load the one in the last shard.

    Raises InvalidCheckpoint if an index names another than that, and for files of one folder that aren't a set: nobody
    could say which of them an engine loads. `origins` names the files at the source that some were made from.
    """
    known = [(index, index.tensors) for index in indexes]
    holders: dict[tuple[str, str], list[str]] = {}
    for path in sorted(headers):
        for each in headers[path].tensors:
            # Per folder: engines load the weights of one folder together.
            holders.setdefault((path.rpartition("/")[0], each.name), []).append(path)
    told: dict[tuple[str, ...], str] = {}
    for (_, tensor), paths in holders.items():
        if len(paths) < 2:
            continue
        index, shard_of = next(
            (each for each in known if each[0].shards.keys() >= set(paths)),
            (None, dict[str, str]()),
        )
        last = paths[-1]
        if index is not None and shard_of.get(tensor, last) != last:
            raise InvalidCheckpoint(
                f"{index.name} names {tensor!r:.200} in {shard_of[tensor]}, but {last} holds it too, and vLLM "
                "loads the last",
                hint=f"Build without the index, as vLLM loads the files: --exclude {index.name}",
            )
        if index is None and len({parse_weight_name(path).shards for path in paths}) > 1:
            raise _twice(tensor, [(origins or {}).get(path, path) for path in paths])
        said = f"{' and '.join(paths)} both hold tensor {tensor!r:.200}: engines load the last"
        told.setdefault(tuple(paths), said)
    return list(told.values())


def _twice(tensor: str, paths: Sequence[str]) -> InvalidCheckpoint:
    first, second = (shlex.quote(set_pattern(path)) for path in paths[:2])
    return InvalidCheckpoint(
        f"{' and '.join(paths[:2])} both hold tensor {tensor!r:.200}",
        hint=f"Choose one, and leave the other out of a build: --exclude {first} or --exclude {second}",
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
                raise _twice(tensor.name, (first, path))


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
        if size <= MAX_POINTER_BYTES:
            refuse_pointer(prefix + file.read(), name=name)
            file.seek(len(prefix))
        length = safetensors.header_length(prefix, file_size=size, name=name)
        return safetensors.parse_header(file.read(length), file_size=size, name=name)


def take_header(pieces: Iterator[bytes], *, size: int, name: str) -> Header:
    """Read and validate the header of a safetensors file of `size` bytes from a stream. Raises InvalidCheckpoint."""
    data = _take(pieces, b"", min(size, safetensors.LENGTH_BYTES))
    if size <= MAX_POINTER_BYTES:
        data = _take(pieces, data, size)
        refuse_pointer(data, name=name)
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
    refuse_pointer(data, name=name)
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidCheckpoint(f"{name} is not valid JSON: {error}", hint=_AGAIN) from error
    if not isinstance(document, dict):
        raise InvalidCheckpoint(f"{name} is not a JSON object", hint=_AGAIN)
    return document
