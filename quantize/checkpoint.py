"""Opens a checkpoint directory: config, shards with checked headers, and the other files.

Reads headers only. The result is consistent: every shard in the index is present, complete, and holds exactly the
tensors that the index lists for it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelimage.checkpoint_files import (
    CONFIG,
    INDEX,
    WeightIndex,
    check_shards,
    read_header,
    read_json,
)
from modelimage.errors import InvalidCheckpoint, NotFound, UnsafePickle
from modelimage.safetensors import Header

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
    try:
        config = read_json(root / CONFIG, name=CONFIG)
    except NotFound as error:
        raise InvalidCheckpoint(
            f"{root} has no {CONFIG}", hint="Download the whole repository."
        ) from error
    index = _index(root)
    shards = {name: read_header(root / name) for name in _shard_names(root, index)}
    if index is not None:
        check_shards(index, shards)
    # Only the root: subdirectories hold other frameworks' weights and the publisher's originals.
    others = [path.name for path in sorted(root.iterdir()) if _is_other(path)]
    return Checkpoint(root, config, shards, others)


def _index(root: Path) -> WeightIndex | None:
    path = root / INDEX
    return WeightIndex.parse(read_json(path, name=INDEX)) if path.is_file() else None


def _shard_names(root: Path, index: WeightIndex | None) -> list[str]:
    """The weight files of the checkpoint, sorted."""
    present = sorted(path.name for path in root.glob("*.safetensors") if path.is_file())
    if index is not None:
        return _indexed_names(index, present)
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


def _indexed_names(index: WeightIndex, present: Sequence[str]) -> list[str]:
    names = list(index.shards)
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
