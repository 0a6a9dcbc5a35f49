"""Finds models in the folders of a source that isn't a model itself. Pure: paths only.

A Hub cache, a training run and a bucket of models hold whole models in folders. Packing them all would make an image
that no server loads, so the user is told which one to name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from modelimage.errors import InvalidCheckpoint

# Files that say what the folder they are in is.
_CONFIGS: Final = ("config.json", "adapter_config.json", "params.json")
# Documents in the root of models that keep their weights in folders: diffusers, sentence-transformers.
_ASSEMBLED: Final = ("model_index.json", "modules.json", *_CONFIGS)
# In the root of models whose parts only their own program loads.
_OWN: Final = (".yaml", ".yml", ".py")
_WEIGHTS: Final = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf")
_SNAPSHOT = re.compile(r"((?:[^/]+/)*snapshots/[^/]+)/.+")
_SHOWN: Final = 5


def check_is_model(paths: Iterable[str], source: str) -> None:
    """Raise InvalidCheckpoint if models are in folders and the root isn't one. `source` is the user's name for it."""
    names = sorted(paths)
    root = [path for path in names if "/" not in path]
    # The root decides: beside what a model has there, folders are parts of it.
    if any(path in _ASSEMBLED or path.endswith((*_WEIGHTS, *_OWN)) for path in root):
        return
    found = model_folders(names)
    if not found:
        return
    cached = any(_SNAPSHOT.fullmatch(f"{folder}/x") for folder in found)
    what = "a folder of the Hugging Face cache" if cached else "a folder of models"
    raise InvalidCheckpoint(
        f"{source} is {what}, not a model: it holds {_listed(found)}", hint=choose(source, found)
    )


def model_folders(paths: Iterable[str]) -> list[str]:
    """The outermost folders that hold a configuration and weights, or are snapshots of a Hub cache."""
    configs, weights, snapshots = set(), set(), set()
    for path in paths:
        folder, _, name = path.rpartition("/")
        if match := _SNAPSHOT.fullmatch(path):
            snapshots.add(match[1])
        # Such a document names folders that have the weights.
        elif name in ("model_index.json", "modules.json"):
            configs.add(folder)
            weights.add(folder)
        elif name in _CONFIGS:
            configs.add(folder)
        elif name.endswith(_WEIGHTS):
            weights.add(folder)
    found = {folder for folder in configs & weights if folder} | snapshots
    return sorted(
        (each for each in found if not any(_inside(each, other) for other in found)), key=_by_number
    )


def choose(source: str, folders: list[str]) -> str:
    """The hint that names the choices."""
    if source.startswith("hf://"):
        return f"Download one folder and build it: hf download {source[5:]} --include '{folders[-1]}/*'"
    return f"Give one of them, for example {source.rstrip('/')}/{folders[-1]}."


def _listed(folders: list[str]) -> str:
    more = f" and {len(folders) - _SHOWN} more" if len(folders) > _SHOWN else ""
    return ", ".join(folders[:_SHOWN]) + more


def _inside(path: str, folder: str) -> bool:
    return path.startswith(f"{folder}/")


def _by_number(path: str) -> list[tuple[int, str]]:
    """checkpoint-500 before checkpoint-1000: the last is the newest."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path)]
