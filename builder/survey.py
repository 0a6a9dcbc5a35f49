"""Lists a source's files and selects those to pack, before anything large is fetched.

Reads only the listing, the configuration and the weight index, so `--dry-run` is cheap, and a checkpoint that lacks a
shard is refused before the first gigabyte is transferred.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder.classify import Classification, select
from builder.layer_plan import PlannedFile
from builder.sources.interface import ModelSource, SourceFile
from modelimage.checkpoint_files import CONFIG, INDEX, WeightIndex, read_json, unlisted_weights
from modelimage.errors import InvalidCheckpoint, UnsafePickle


@dataclass(frozen=True, slots=True)
class Survey:
    """A source's files by path, their classification, and the two documents that later steps depend on."""

    source: ModelSource
    files: dict[str, SourceFile]
    selection: Classification
    config: dict[str, Any]
    index: WeightIndex | None

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
    selection = select(files, include=include, exclude=exclude)
    # What the source left out is shown with its reason, like any other file.
    selection = selection.also_ignored(listing.ignored)
    # Before any file is fetched.
    _check_weights(selection, source, convert_pickle=convert_pickle)
    config = _document(source, files, selection, CONFIG) or {}
    index_document = _document(source, files, selection, INDEX)
    index = WeightIndex.parse(index_document) if index_document is not None else None
    if index is not None:
        # Weights that the index doesn't list are leftovers, which engines ignore.
        unlisted = unlisted_weights(index, selection.weights)
        selection = selection.without(unlisted, f"not named by {INDEX}")
    return Survey(source, files, selection, config, index)


def _check_weights(selection: Classification, source: ModelSource, *, convert_pickle: bool) -> None:
    if selection.weights or (selection.pickles and convert_pickle):
        return
    if selection.pickles:
        raise UnsafePickle(
            f"the weights are pickle files, which run code when loaded: {_some(selection.pickles)}",
            hint="Choose a revision with safetensors, or add --convert-pickle to convert them safely.",
        )
    others = [path for path, reason in selection.ignored.items() if "framework" in reason]
    found = f"; it has {_some(others)}" if others else ""
    raise InvalidCheckpoint(
        f"there are no safetensors weights in {source.uri}{found}",
        hint="Give a Hugging Face checkpoint: *.safetensors and config.json.",
    )


def _document(
    source: ModelSource, files: dict[str, SourceFile], selection: Classification, name: str
) -> dict[str, Any] | None:
    # An excluded document must not decide about the other files.
    if name not in selection.roles:
        return None
    location: Path = source.fetch(files[name], lambda _: None)
    return read_json(location, name=name)


def _some(paths: Sequence[str]) -> str:
    shown = ", ".join(paths[:3])
    return f"{shown} and {len(paths) - 3} more" if len(paths) > 3 else shown
