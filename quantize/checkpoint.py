"""Opens a checkpoint directory: config, shards with checked headers, and the other files.

Reads headers only. The result is consistent: every shard in the index is present, complete, and holds exactly the
tensors that the index lists for it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from modelimage.errors import InvalidCheckpoint, NotFound, UnsafePickle
from modelimage.safetensors import LENGTH_BYTES, Header, header_length, parse_header

CONFIG: Final = "config.json"
INDEX: Final = "model.safetensors.index.json"
_NUMBERED = re.compile(r".*-\d{5}-of-\d{5}\.safetensors")
_WEIGHTS = re.compile(
    r".*\.(safetensors|safetensors\.index\.json|bin|bin\.index\.json|pt|pth|ckpt|gguf|onnx|h5|msgpack"
    r"|ot|tflite|pb|npz|nemo|mlmodel)",
    re.IGNORECASE,
)
_QUANTIZER_FILES = frozenset({"quantize_config.json", "recipe.yaml", "quant_log.csv"})


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint directory. `shards`: header by name, in name order; `others`: small files."""

    root: Path
    config: Mapping[str, Any]
    shards: Mapping[str, Header]
    others: Sequence[str]

    @property
    def indexed(self) -> bool:
        return (self.root / INDEX).is_file()


def open_checkpoint(root: Path) -> Checkpoint:
    """Open and check a directory. Raises NotFound, InvalidCheckpoint, UnsafePickle."""
    if not root.is_dir():
        raise NotFound(f"{root} is not a directory", hint="Name a directory with a config.json.")
    config = read_json(root / CONFIG)
    names = _shard_names(root)
    shards = {name: read_header(root / name) for name in names}
    if (root / INDEX).is_file():
        _check_index(root, shards)
    others = [path.name for path in sorted(root.iterdir()) if _is_other(path)]
    return Checkpoint(root, config, shards, others)


def read_header(path: Path) -> Header:
    """The checked header of one safetensors file. Raises InvalidCheckpoint."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = header_length(file.read(LENGTH_BYTES), file_size=size, name=path.name)
        return parse_header(file.read(length), file_size=size, name=path.name)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file. Raises InvalidCheckpoint, also when the file is missing."""
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise InvalidCheckpoint(
            f"{path.parent} has no {path.name}", hint="Download the whole repository."
        ) from error
    except (ValueError, RecursionError) as error:
        raise InvalidCheckpoint(f"{path.name} is not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise InvalidCheckpoint(f"{path.name} is not a JSON object")
    return document


def _shard_names(root: Path) -> list[str]:
    """The weight files of the checkpoint, sorted."""
    present = sorted(path.name for path in root.glob("*.safetensors") if path.is_file())
    if (root / INDEX).is_file():
        return _indexed_names(root, present)
    if not present:
        raise _no_weights(root)
    # Without the index it is unknown whether they are complete or belong together.
    if len(present) > 1:
        raise InvalidCheckpoint(
            f"{root} has {len(present)} safetensors files but no {INDEX}",
            hint="Download the index file too, or remove the files that don't belong.",
        )
    if _NUMBERED.fullmatch(present[0]) and "-00001-of-00001" not in present[0]:
        raise InvalidCheckpoint(
            f"{present[0]} is one of several files, and {INDEX} is missing",
            hint="Download the whole repository.",
        )
    return present


def _indexed_names(root: Path, present: Sequence[str]) -> list[str]:
    names = sorted(set(_weight_map(root).values()))
    for name in names:
        # The index is untrusted: a name must not leave the directory.
        if "/" in name or name.startswith("."):
            raise InvalidCheckpoint(f"{INDEX} names a file outside the checkpoint: {name!r}")
        if name not in present:
            raise InvalidCheckpoint(
                f"{INDEX} names {name}, which is missing", hint="Download the whole repository."
            )
    # An unnumbered file (an adapter) may lie beside the shards; a numbered one shows a mixed download.
    strays = [name for name in present if name not in names and _NUMBERED.fullmatch(name)]
    if strays:
        raise InvalidCheckpoint(
            f"{strays[0]} is missing from {INDEX}",
            hint="Download the index again, or remove the file if it doesn't belong.",
        )
    return names


def _weight_map(root: Path) -> dict[str, str]:
    weights = read_json(root / INDEX).get("weight_map")
    if not isinstance(weights, dict) or not weights:
        raise InvalidCheckpoint(f"{INDEX} has no weight_map")
    if not all(isinstance(name, str) for name in weights.values()):
        raise InvalidCheckpoint(f"{INDEX} has a malformed weight_map")
    return weights


def _check_index(root: Path, shards: Mapping[str, Header]) -> None:
    held = {(t.name, shard) for shard, header in shards.items() for t in header.tensors}
    stated = set(_weight_map(root).items())
    for tensor, shard in sorted(stated - held):
        raise InvalidCheckpoint(
            f"{INDEX} says {tensor} is in {shard}, but it isn't",
            hint="Download the checkpoint again.",
        )
    for tensor, shard in sorted(held - stated):
        raise InvalidCheckpoint(
            f"{shard} holds {tensor}, which {INDEX} doesn't name",
            hint="Download the checkpoint again.",
        )


def _no_weights(root: Path) -> InvalidCheckpoint:
    pickles = [path for suffix in ("bin", "pt", "pth") for path in root.glob(f"*.{suffix}")]
    if pickles:
        return UnsafePickle(
            f"{pickles[0].name} is a pickle, which runs code when it is loaded",
            hint="Convert the checkpoint to safetensors first.",
        )
    return InvalidCheckpoint(
        f"{root} has no safetensors file", hint="Download the whole repository."
    )


def _is_other(path: Path) -> bool:
    """Whether a file is copied unchanged: tokenizer, documents, code; no weights, no hidden files."""
    name = path.name
    return (
        path.is_file()
        and not name.startswith(".")
        and name != CONFIG
        and name not in _QUANTIZER_FILES
        and not _WEIGHTS.fullmatch(name)
    )
