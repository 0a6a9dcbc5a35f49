"""Finds weight files that hold the weights of others again. Pure: names only.

Judged for each folder: a folder is a module of its own (sentence-transformers' `2_Dense/`, diffusers' `vae/`), and its
only weights are never a copy of another folder's. A pipeline's root is none: its weights are in the folders of its
parts, so a file beside `model_index.json` holds all of them again, in the format of other programs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Final

from modelimage.weight_names import parse_weight_name

PIPELINE: Final = "model_index.json"  # diffusers' list of a pipeline's parts


def copies(
    weights: Iterable[str], pickles: Iterable[str], documents: Iterable[str]
) -> dict[str, str]:
    """The files that are copies of others, by path, with the reason to leave them out.

    `documents`: the paths of the checkpoint's other files.
    """
    folders: dict[str, tuple[list[str], list[str]]] = {}
    for place, paths in enumerate((weights, pickles)):
        for path in paths:
            folders.setdefault(path.rpartition("/")[0], ([], []))[place].append(path)
    found: dict[str, str] = {}
    for ours, theirs in folders.values():
        found |= _of_folder(ours, theirs)
    for path in documents:
        root, _, name = path.rpartition("/")
        if name == PIPELINE and any(_is_inside(folder, root) for folder in folders):
            single = chain(*folders.get(root, ()))
            found |= dict.fromkeys(single, "the pipeline's parts again, in one file")
    return dict(sorted(found.items()))


def _is_inside(folder: str, root: str) -> bool:
    return folder.startswith(f"{root}/" if root else "") and folder != root


def _of_folder(weights: Sequence[str], pickles: Sequence[str]) -> dict[str, str]:
    held = {parse_weight_name(path).weights for path in weights}
    converted = [path for path in pickles if parse_weight_name(path).weights not in held]
    found = dict.fromkeys(set(pickles) - set(converted), "pickle; the safetensors files are packed")
    # Pickles that are converted may be copies of each other.
    return found | _among(weights) | _among(converted)


def _among(paths: Sequence[str]) -> dict[str, str]:
    """Copies among files of one format."""
    names = {path: parse_weight_name(path) for path in paths}
    plain = {name.base for name in names.values() if not name.variant}
    # Alone, a publisher's own format is the weights, and so is a variant.
    own = any(not name.is_consolidated and name.weights == "model" for name in names.values())
    found = {}
    for path, name in names.items():
        if name.is_consolidated and own:
            found[path] = "the publisher's original copy of the same weights"
        elif name.variant and name.base in plain:
            found[path] = f"the same weights as variant {name.variant}"
    return found
