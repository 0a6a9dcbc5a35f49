"""Lists a source's files and selects those to pack, before anything large is fetched.

Reads only the listing, the configuration and the weight index, so `--dry-run` is cheap, and a checkpoint that lacks a
shard is refused before the first gigabyte is transferred.
"""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from builder.classify import PICKLE_INDEX, UNKNOWN, Classification, check_paths, select
from builder.copies import PIPELINE
from builder.layer_plan import PlannedFile
from builder.model_folders import check_is_model, choose, model_folders
from builder.model_warnings import adapter_warnings, other_repositories
from builder.named_files import (
    MAX_DOCUMENT_BYTES,
    may_name_files,
    missing_code,
    missing_parts,
    named_files,
    tokenizer_warning,
)
from builder.sources.interface import ModelSource, SourceFile
from modelimage.checkpoint_files import (
    CONFIG,
    WeightIndex,
    check_present,
    read_json,
    unlisted_weights,
)
from modelimage.durable import reading
from modelimage.errors import InvalidCheckpoint, UnsafePickle
from modelimage.lfs_pointers import check_no_pointer
from modelimage.mistral_config import PARAMETERS, is_native, native_config
from modelimage.model_facts import MODULES, TOKENIZER_CONFIG
from modelimage.path_rules import parents
from modelimage.record import Role
from modelimage.weight_names import missing_shards, set_pattern

# BGE-M3's heads, in FlagEmbedding and vLLM.
_READ_AS_PICKLES: Final = ("colbert_linear.pt", "sparse_linear.pt")
ADAPTER: Final = "adapter_config.json"
MODELOPT_CONFIG: Final = "hf_quant_config.json"
_WEIGHT_SUFFIXES: Final = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".ggml", ".onnx", ".h5", ".msgpack", ".npz", ".nemo",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Survey:
    """A source's files by path, their classification, and the documents that later steps depend on.

    `warnings` are sentences for the user; `origin` is the source's own, for the record.
    """

    source: ModelSource
    files: dict[str, SourceFile]
    selection: Classification
    config: dict[str, Any]
    indexes: tuple[WeightIndex, ...]
    warnings: tuple[str, ...] = ()
    origin: Mapping[str, str] = field(default_factory=dict)

    def planned(self) -> list[PlannedFile]:
        """The files to pack, as they are at the source."""
        return [
            PlannedFile(path, self.files[path].size, role)
            for path, role in self.selection.roles.items()
        ]


def survey(
    source: ModelSource,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    convert_pickle: bool = False,
) -> Survey:
    """List and classify the files, and check everything that doesn't need the weights.

    Raises InvalidCheckpoint, UnsafePickle, and any error of the source.
    """
    listing = source.list()
    files = {file.path: file for file in listing.files}
    check_is_model(files, source.name)
    selection = select(files, include=include, exclude=exclude)
    # What the source left out is shown with its reason, like any other file.
    selection = selection.also_ignored(listing.ignored)
    # Before any file is fetched.
    _check_weights(selection, source, convert_pickle=convert_pickle)
    documents = _Documents(source, files)
    # A directory may hold Git LFS's pointers in place of files: told now, and not after hours.
    if source.is_local:
        for path in (*selection.roles, *selection.pickles):
            documents.path(path)
    selection = selection.also_packed(_named(documents, selection))
    check_paths((*selection.roles, *selection.pickles))
    selection, indexes = _indexed(documents, selection)
    _check_complete(selection)
    config = _config(documents, selection)
    warnings = _warnings(documents, selection, config)
    return Survey(source, files, selection, config, indexes, warnings, listing.origin)


def _config(documents: _Documents, selection: Classification) -> dict[str, Any]:
    """The configuration as vLLM reads it: ModelOpt once stated the quantization in a file of its own."""
    config = documents.read(CONFIG) if CONFIG in selection.roles else {}
    if is_native(selection.roles):
        config = native_config(documents.read(PARAMETERS), config)
    if MODELOPT_CONFIG in selection.roles and not config.get("quantization_config"):
        return {**config, "quantization_config": documents.read(MODELOPT_CONFIG)}
    return config


def _warnings(
    documents: _Documents, selection: Classification, config: Mapping[str, Any]
) -> tuple[str, ...]:
    parsed = {CONFIG: config}
    if TOKENIZER_CONFIG in selection.roles:
        # Only its own library may understand it.
        with contextlib.suppress(InvalidCheckpoint):
            parsed[TOKENIZER_CONFIG] = documents.read(TOKENIZER_CONFIG)
    pipeline = documents.json(PIPELINE) if PIPELINE in selection.roles else None
    modules = documents.json(MODULES) if MODULES in selection.roles else None
    packed = (*selection.roles, *selection.pickles)
    parts = missing_parts(pipeline if isinstance(pipeline, dict) else {}, modules, packed)
    tokenizer = tokenizer_warning(selection.roles, selection.ignored)
    adapter = documents.json(ADAPTER) if ADAPTER in selection.roles else None
    refused = adapter_warnings(adapter) if isinstance(adapter, dict) else []
    lacks = [*other_repositories(config), *parts, *([tokenizer] if tokenizer else []), *refused]
    return (*missing_code(parsed, selection.roles), *lacks)


@dataclass(frozen=True, slots=True)
class _Documents:
    """Reads small files of the source."""

    source: ModelSource
    files: dict[str, SourceFile]

    def path(self, name: str) -> Path:
        location = self.source.fetch(self.files[name], lambda _: None)
        check_no_pointer(location, self.files[name].size, name=name)
        return location

    def read(self, name: str) -> dict[str, Any]:
        return read_json(self.path(name), name=name)

    def json(self, name: str) -> object:
        """Any JSON; None for anything else, which perhaps only its own library understands."""
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(self.text(name))
        return None

    def text(self, name: str) -> str:
        path = self.path(name)
        with reading(path), path.open("rb") as file:
            return file.read(MAX_DOCUMENT_BYTES).decode(errors="replace")


def _named(documents: _Documents, selection: Classification) -> dict[str, Role]:
    """Files of unknown types that the model's own documents name."""
    # In object stores, the mark of a folder may be an object of its name.
    folders = {parent for path in documents.files for parent in parents(path)}
    unknown = [
        path
        for path, reason in selection.ignored.items()
        if reason == UNKNOWN and path not in folders
    ]
    if not unknown:
        return {}
    texts = {path: documents.text(path) for path in selection.roles if may_name_files(path)}
    return named_files(texts, unknown)


def _indexed(
    documents: _Documents, selection: Classification
) -> tuple[Classification, tuple[WeightIndex, ...]]:
    """The indexes of what is packed, whatever they are called, and the selection without what they leave out."""
    indexes = []
    # An excluded index must not decide about the other files; a pickle's matters until it is converted.
    folders = {path.rpartition("/")[0] for path in selection.pickles}
    pickled = [
        path
        for path, reason in selection.ignored.items()
        if reason == PICKLE_INDEX and path.rpartition("/")[0] in folders
    ]
    beside = {path.rpartition("/")[0] for path in (*selection.weights, *selection.pickles)}
    named = [
        path
        for path, role in selection.roles.items()
        if role is Role.CONFIG and path.endswith(".json") and path.rpartition("/")[0] in beside
    ]
    for path in dict.fromkeys((*named, *filter(_is_index, selection.roles), *pickled)):
        index = _index(documents, path)
        if index is None:
            continue
        left_out = {
            each: selection.ignored[each] for each in index.shards if each in selection.ignored
        }
        # It describes copies that were left out with it.
        if len(left_out) == len(index.shards):
            selection = selection.without([path], "the index of weights that are left out")
            continue
        for shard, reason in left_out.items():
            raise InvalidCheckpoint(
                f"{path} names {shard!r}, which is left out: {reason}",
                hint=f"Pack it with --include, or leave out the index too: --exclude {path}",
            )
        check_present(index, documents.files)
        if index.shards.keys() <= set(selection.pickles):
            # The converted files get an index of their own.
            selection = selection.without([path], PICKLE_INDEX)
        else:
            _check_kind(index, selection.weights)
            indexes.append(index)
            # Weights that the index doesn't list are leftovers, which engines ignore.
            unlisted = unlisted_weights(index, selection.weights)
            selection = selection.without(unlisted, f"not named by {path}")
    return selection, tuple(indexes)


def _check_kind(index: WeightIndex, weights: Sequence[str]) -> None:
    for shard in sorted(index.shards.keys() - set(weights)):
        raise InvalidCheckpoint(
            f"{index.name} names {shard!r}, which isn't a safetensors file",
            hint=f"Download the checkpoint again, or build without the index: --exclude {index.name}",
        )


def _is_index(path: str) -> bool:
    return ".safetensors.index" in path.rpartition("/")[2].lower()


def _index(documents: _Documents, path: str) -> WeightIndex | None:
    if _is_index(path):
        return WeightIndex.parse(documents.read(path), name=path)
    # Other documents are indexes by their content: those of pickles, and some that only their own programs read.
    with contextlib.suppress(InvalidCheckpoint):
        return WeightIndex.parse(documents.read(path), name=path)
    return None


def _check_complete(selection: Classification) -> None:
    """Raise InvalidCheckpoint if the names of shards promise others: not every set of shards has an index."""
    for path in missing_shards((*selection.weights, *selection.pickles)):
        raise InvalidCheckpoint(
            f"the shard {path} is missing",
            hint="Download the checkpoint again. If the others are a stale set: "
            f"--exclude {shlex.quote(set_pattern(path))}",
        )


def _check_weights(selection: Classification, source: ModelSource, *, convert_pickle: bool) -> None:
    # First what no option of the user can turn into something else, then what --convert-pickle can.
    fixed = [path for path in selection.pickles if path.rpartition("/")[2] in _READ_AS_PICKLES]
    if fixed and convert_pickle:
        raise UnsafePickle(
            f"engines read {fixed[0]} under this name only, so converting it doesn't help",
            hint=f"Pack it as it is: --include {fixed[0]}. Or leave it out: --exclude {fixed[0]}",
        )
    if selection.pickles and not convert_pickle:
        beside = "some weights" if selection.weights else "the weights"
        raise UnsafePickle(
            f"{beside} are pickle files, which run code when loaded: {_some(selection.pickles)}",
            hint="Choose a revision with safetensors, or add --convert-pickle to convert them safely. --exclude leaves "
            "one out; --include with its exact name packs it as it is.",
        )
    if selection.weights or selection.pickles:
        return
    kept = [path for path in selection.ignored if path.lower().endswith(_WEIGHT_SUFFIXES)]
    folders = model_folders(selection.ignored)
    found = f"; it has {_some(kept)}" if kept else ""
    raise InvalidCheckpoint(
        f"there are no safetensors weights in {source.name}{found}",
        hint=choose(source.name, folders)
        if folders
        else "Give a Hugging Face checkpoint: *.safetensors and config.json.",
    )


def _some(paths: Sequence[str]) -> str:
    shown = ", ".join(paths[:3])
    return f"{shown} and {len(paths) - 3} more" if len(paths) > 3 else shown
