"""Reads GGUF: which of a model's files a server opens, and what a file's metadata says of the KV cache. Pure.

Sources: ggml's `docs/gguf.md` (layout and keys) and llama.cpp (`llama-hparams`, the choice of a file by its `-hf`). A
file's metadata comes before its tokenizer's, which is long and not read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from modelimage.bounds import positive
from modelimage.weight_names import parse_weight_name

SUFFIX: Final = ".gguf"
METADATA_BYTES: Final = 1 << 20  # what is read of a file
_MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
_TOKENIZER: Final = "tokenizer."
_STRING, _ARRAY = 8, 9
_SCALARS: Final[Mapping[int, str]] = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
_MOST_LAYERS: Final = 10_000
_HALF: Final = 2  # bytes of an f16 value
# What llama.cpp takes of a repository with several quantizations.
_PREFERRED: Final = ("q4_k_m", "q8_0")
_NOT_A_MODEL: Final = ("mmproj", "imatrix")


@dataclass(frozen=True, slots=True)
class GgufFiles:
    """The files of one model: its parts in order, of which a server opens the first, and what stands beside them.

    That is a projector for pictures, and adapters (LoRA).
    """

    parts: tuple[str, ...]
    projector: str | None = None
    adapters: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GgufFacts:
    """What a file's metadata says. 0 and empty mean unknown; `cache_bytes` of a token is None then."""

    architecture: str = ""
    context_length: int = 0
    cache_bytes: int | None = None


def gguf_files(paths: Iterable[str]) -> GgufFiles | None:
    """The files that a server opens: all parts of one quantization, and a projector; None without any GGUF file."""
    known = sorted(paths)
    choices = gguf_choices(known)
    projectors = [path for path in known if "mmproj" in path.rpartition("/")[2].lower()]
    if not choices:
        return None
    # Projectors are small; the one in 16 bits is what others are made of.
    projector = min(projectors, key=lambda path: "f16" not in path.lower(), default=None)
    # Of this name they belong to the model (Ollama's and Docker's images); others of a repository are a choice.
    models = {path for each in choices for path in each}
    adapters = tuple(p for p in _weights(known) if p not in models and p.startswith("adapter"))
    return GgufFiles(choices[0], projector, adapters)


def gguf_choices(paths: Iterable[str]) -> list[tuple[str, ...]]:
    """The parts of each quantization among the files, the one that a server takes by default first."""
    weights = _weights(sorted(paths))
    # An adapter is one only beside a base.
    models = [path for path in weights if not parse_weight_name(path).is_adapter] or weights
    found: dict[object, list[str]] = {}
    for path in sorted(models, key=_preference):
        found.setdefault(parse_weight_name(path).shards, []).append(path)
    return [tuple(parts) for parts in found.values()]


def _weights(paths: Iterable[str]) -> list[str]:
    return [path for path in paths if path.lower().endswith(SUFFIX) and not _is_beside(path)]


def _is_beside(path: str) -> bool:
    name = path.rpartition("/")[2].lower()
    return any(each in name for each in _NOT_A_MODEL)


def _preference(path: str) -> int:
    name = path.lower()
    found = (at for at, each in enumerate(_PREFERRED) if each in name)
    return next(found, len(_PREFERRED))


def gguf_facts(start: bytes) -> GgufFacts:
    """The facts in the first METADATA_BYTES of a file; all unknown if it isn't GGUF."""
    metadata = _metadata(start)
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str):
        return GgufFacts()
    own = {
        key.removeprefix(f"{architecture}."): value
        for key, value in metadata.items()
        if key.startswith(f"{architecture}.")
    }
    return GgufFacts(architecture, positive(own.get("context_length")), _cache_bytes(own))


def _cache_bytes(own: Mapping[str, Any]) -> int | None:
    """Bytes of KV cache per token over all layers, in 16 bits; None if it can't be derived."""
    layers = positive(own.get("block_count"))
    if not 0 < layers <= _MOST_LAYERS or "attention.head_count" not in own:
        return None
    queries = _each_layer(own["attention.head_count"], layers)
    kept = _each_layer(own.get("attention.head_count_kv", own["attention.head_count"]), layers)
    # Recurrent layers have no heads, or attention comes in an interval.
    interval = positive(own.get("full_attention_interval")) or 1
    heads = sum(kept[interval - 1 :: interval])
    if not heads:
        return 0
    width = positive(own.get("embedding_length")) // max(*queries, 1)
    key = positive(own.get("attention.key_length")) or width
    # Latent attention keeps keys alone, of which its values are a part.
    value = (
        0
        if "attention.key_length_mla" in own
        else positive(own.get("attention.value_length")) or width
    )
    return heads * (key + value) * _HALF or None


def _each_layer(value: object, layers: int) -> list[int]:
    several = value[:layers] if isinstance(value, list) else [value] * layers
    return [positive(each) for each in several]


class _Truncated(Exception):
    """The bytes end within a value."""


class _Reader:
    """Reads values one after the other. Raises _Truncated."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int) -> bytes:
        if size > len(self._data) - self._at:
            raise _Truncated
        self._at += size
        return self._data[self._at - size : self._at]

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self) -> str:
        return self.take(self.number("<Q")).decode(errors="replace")

    def value(self, kind: int) -> Any:
        """A value; None for an array of anything but numbers, which is skipped."""
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return self.number(_SCALARS[kind])
        item, count = self.number("<I"), self.number("<Q")
        if item in _SCALARS:
            # Taken as a whole: a count alone must not make a long loop.
            form = _SCALARS[item]
            values = self.take(count * struct.calcsize(form))
            return [each for (each,) in struct.iter_unpack(form, values)]
        if item != _STRING:
            # No key that is read here has arrays of arrays, and a file could nest them without end.
            raise _Truncated
        # A false count makes no long loop: each string takes its 8 bytes of length at least.
        for _ in range(count):
            self.text()
        return None


def _metadata(start: bytes) -> dict[str, Any]:
    """The keys before the tokenizer's, as far as the bytes reach."""
    reader, found = _Reader(start), dict[str, Any]()
    try:
        if reader.take(4) != _MAGIC or reader.number("<I") not in _VERSIONS:
            return {}
        reader.number("<Q")  # tensors
        for _ in range(reader.number("<Q")):
            key = reader.text()
            if key.startswith(_TOKENIZER):
                break
            found[key] = reader.value(reader.number("<I"))
    # After a value of an unknown type nothing can be found: its size is unknown too.
    except (_Truncated, KeyError):
        pass
    return found
