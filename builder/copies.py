"""Finds weight files that hold the weights of others again. Pure: names only.

Judged for each folder: a folder is a module of its own (sentence-transformers' `2_Dense/`, diffusers' `vae/`), and its
only weights are never a copy of another folder's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from modelimage.weight_names import WeightName, parse_weight_name


def copies(weights: Iterable[str], pickles: Iterable[str]) -> dict[str, str]:
    """The files that are copies of safetensors beside them, by path, with the reason to leave them out."""
    folders: dict[str, tuple[list[str], list[str]]] = {}
    for place, paths in enumerate((weights, pickles)):
        for path in paths:
            folders.setdefault(path.rpartition("/")[0], ([], []))[place].append(path)
    found: dict[str, str] = {}
    for ours, theirs in folders.values():
        found |= _of_folder(ours, theirs)
    return dict(sorted(found.items()))


def _of_folder(weights: Sequence[str], pickles: Sequence[str]) -> dict[str, str]:
    names = {path: parse_weight_name(path) for path in (*weights, *pickles)}
    safe = [names[path] for path in weights]
    plain = {name.base for name in safe if not name.variant}
    # Alone, a publisher's own format is the weights.
    own = any(not name.is_consolidated and not name.is_adapter for name in safe)
    held = {name.weights for name in safe}
    found = {}
    for path, name in names.items():
        if path in pickles:
            if name.weights in held:
                found[path] = "pickle; the safetensors files are packed"
        elif name.is_consolidated and own:
            found[path] = "the publisher's original copy of the same weights"
        elif _is_variant(name, plain):
            found[path] = f"the same weights as variant {name.variant}"
    return found


def _is_variant(name: WeightName, plain: set[str]) -> bool:
    # Without files of the plain name, a variant is the weights.
    return bool(name.variant) and name.base in plain
