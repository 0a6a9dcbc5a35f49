"""The names of weight files: which belong to one set of shards, and which hold the same weights again. Pure.

The conventions are those of transformers, diffusers and huggingface-hub: `model-00001-of-00002.safetensors` is a shard,
`model.fp16.safetensors` a variant of `model.safetensors`, `pytorch_model.bin` the same weights as a pickle.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

_SHARD = re.compile(
    r"(?P<head>.*?)[-_.]?(?P<number>[0-9]{1,6})[-_]of[-_](?P<total>[0-9]{1,6})(?P<tail>.*)"
)
# Not a number: `consolidated.00` is a part, not a variant.
_VARIANT = re.compile(r"(?P<base>.+)\.(?P<variant>[A-Za-z_][A-Za-z0-9_]*)")
# Mistral and Meta publish weights in their own format under this name, beside the same weights for transformers.
_CONSOLIDATED = "consolidated"
_ADAPTER = "adapter"


@dataclass(frozen=True, slots=True)
class WeightName:
    """A weight file's name in its parts. `number` and `total` are None for a file that isn't a shard.

    `base` is the name without folder, variant, number and suffix.
    """

    folder: str
    base: str
    variant: str
    suffix: str
    number: int | None = None
    total: int | None = None

    @property
    def weights(self) -> str:
        """What the file holds, equal for copies in other formats: `model` for `pytorch_model` and `consolidated.00`."""
        if self.is_consolidated:
            return "model"
        return self.base.replace("pytorch_model", "model")

    @property
    def is_consolidated(self) -> bool:
        """Whether this is a publisher's own format of the weights."""
        return self.base.startswith(_CONSOLIDATED)

    @property
    def is_adapter(self) -> bool:
        """Whether this is an adapter, which isn't a copy of the weights beside it."""
        return self.base.startswith(_ADAPTER)

    @property
    def shards(self) -> tuple[object, ...]:
        """What the shards of one set have in common."""
        return self.folder, self.base, self.variant, self.suffix, self.total


def parse_weight_name(path: str) -> WeightName:
    """The parts of any file's path; a name without the conventions is all `base`."""
    folder, _, name = path.lower().rpartition("/")
    stem, _, suffix = name.rpartition(".")
    shard = _SHARD.fullmatch(stem)
    base = f"{shard['head']}{shard['tail']}" if shard else stem
    variant = _VARIANT.fullmatch(base)
    if variant:
        base = variant["base"]
    numbers = (int(shard["number"]), int(shard["total"])) if shard else (None, None)
    return WeightName(folder, base, variant["variant"] if variant else "", suffix, *numbers)


def set_pattern(path: str) -> str:
    """A pattern of shell wildcards that matches all shards of a file's set; the path itself for a single file."""
    return _with_number(path, lambda width: "*")


def missing_shards(paths: Iterable[str]) -> list[str]:
    """The first missing shard of each set that names promise: with `a-00001-of-00002.bin` alone, its second."""
    sets: dict[tuple[object, ...], dict[int, str]] = {}
    for path in paths:
        name = parse_weight_name(path)
        if name.number is not None:
            sets.setdefault(name.shards, {})[name.number] = path
    missing = []
    for held in sets.values():
        some = held[min(held)]
        # Some programs count from 0.
        first = min(1, *held)
        total = parse_weight_name(some).total or 0
        gap = next((each for each in range(first, first + total) if each not in held), None)
        if gap is not None:
            missing.append(_with_number(some, str(gap).zfill))
    return missing


def _with_number(path: str, write: Callable[[int], str]) -> str:
    """A shard's name with another number, which `write` writes in as many characters; any other name as it is."""
    folder, slash, name = path.rpartition("/")
    shard = _SHARD.fullmatch(name)
    if shard is None:
        return path
    start, stop = shard.span("number")
    return f"{folder}{slash}{name[:start]}{write(stop - start)}{name[stop:]}"
