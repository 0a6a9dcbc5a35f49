"""The record `weightyard.json`: the contents of a model image, file by file and chunk by chunk.

The record is fetched first. The manifest authenticates its digest, and it authenticates every 32 MiB chunk, so chunks
can be verified separately, from any source, on any core. It is still only its author's claim: a file's sha256 is
trusted only after it has been computed locally. It contains only byte-deterministic data.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Any, Final

from modelimage import canonical
from modelimage.bounds import MALFORMED
from modelimage.digest import Digest
from modelimage.errors import InvalidImage, WeightyardError
from modelimage.path_rules import check_model_path, parents
from modelimage.recipe import LayerFile, Recipe, layer_recipe

SCHEMA_VERSION: Final = 1
# The unit of fetching, verification and repair. A part of the schema: another size needs a new version.
CHUNK_SIZE: Final = 32 << 20
# Bounded before parsing: records come from untrusted images.
MAX_RECORD_BYTES: Final = 8 << 20
# Of what it says beside its files and layers, which is kept as it was parsed.
_MOST_SAID: Final = 256 << 10
_BLAKE3 = re.compile(r"[0-9a-f]{64}")


class Role(Enum):
    """The purpose of a file or layer. The value is written to records and annotations."""

    WEIGHT = "weight"
    CONFIG = "config"
    TOKENIZER = "tokenizer"
    DOC = "doc"
    CODE = "code"
    RECORD = "record"
    LINK = "link"
    BASE = "base"


@dataclass(frozen=True, slots=True)
class RecordFile:
    """One file: `size` in bytes, its sha256, the BLAKE3 of each 32 MiB chunk in hex, and its layer."""

    path: str
    size: int
    digest: Digest
    role: Role
    layer: Digest
    chunks: tuple[str, ...]

    def chunk_count(self) -> int:
        return -(-self.size // CHUNK_SIZE)

    def to_json(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "size": self.size,
            "sha256": self.digest.hex,
            "role": self.role.value,
            "layer": str(self.layer),
            "blake3": list(self.chunks),
        }

    @classmethod
    def from_json(
        cls, value: Mapping[str, Any], check: Callable[[str], str] = check_model_path
    ) -> RecordFile:
        """Parse `to_json`'s output; `check` refuses paths. Raises KeyError, TypeError, ValueError, WeightyardError."""
        return cls(
            path=check(_text(value["path"])),
            size=_count(value["size"]),
            digest=Digest(_text(value["sha256"])),
            role=Role(value["role"]),
            layer=Digest.parse(value["layer"]),
            chunks=tuple(_text(chunk) for chunk in value["blake3"]),
        )


@dataclass(frozen=True, slots=True)
class RecordLayer:
    """One layer blob: its digest, `size` in bytes, and role."""

    digest: Digest
    size: int
    role: Role


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Facts about the model as a whole, for planners. Sizes in bytes; 0 and empty mean unknown.

    `quantization` names the precision of weights that were published quantized (`modelimage.quantization`). `kv_heads`
    are divided among the GPUs of a tensor parallel group, whose allowed sizes are `tensor_parallel_sizes`. `pooling`:
    the model embeds or ranks. `lora_rank` is the greatest rank of an adapter, or of those that a model is meant to be
    served with. `quantized_experts`: a mixture's experts have less than 16 bits. `sampling`: default parameters that an
    Ollama image states, by Ollama's names; never in a record.
    """

    architecture: str = ""
    parameters: int = 0
    weight_bytes: int = 0
    kv_cache_bytes_per_token: int = 0
    gpu_memory_bytes: int = 0
    context_length: int = 0
    dtype: str = ""
    format: str = "safetensors"
    model_type: str = ""
    quantization: str = ""
    kv_heads: int = 0
    tensor_parallel_sizes: tuple[int, ...] = ()
    pooling: bool = False
    lora_rank: int = 0
    quantized_experts: bool = False
    sampling: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Record:
    """The contents of one variant of a model image.

    `source` is a URI with no information about the build machine; `revision` is a resolved commit;
    `quantization` describes how the variant was made, None if the weights are as published.
    Law: `Record.parse(r.to_bytes()) == r`.
    """

    variant: str
    source: str
    revision: str
    license: str
    facts: ModelFacts
    files: tuple[RecordFile, ...]
    layers: tuple[RecordLayer, ...]
    quantization: Mapping[str, Any] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    # Computed once, like `by_layer`: a pull asks for both again and again, and a record may list 20,000 files.
    @cached_property
    def key(self) -> Digest:
        """The model key: the digest of the record's bytes."""
        return Digest.of(self.to_bytes())

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @cached_property
    def by_layer(self) -> Mapping[Digest, list[RecordFile]]:
        """The files of each layer that has some, in the record's order."""
        return files_by_layer(self.files)

    def layer_files(self, layer: Digest) -> list[RecordFile]:
        return self.by_layer.get(layer, [])

    def recipe(self, layer: Digest) -> Recipe:
        """The recipe of one layer's blob."""
        return layer_recipe(
            LayerFile(file.path, file.size, file.digest) for file in self.layer_files(layer)
        )

    def to_bytes(self) -> bytes:
        """The canonical bytes, stored in the image as `weightyard.json`."""
        return canonical.to_bytes(_to_json(self))

    @classmethod
    def parse(cls, data: bytes) -> Record:
        """Parse and validate an untrusted record. Raises InvalidImage."""
        document = canonical.parse(data, what="the record", most=canonical.MOST_OF_FILES)
        # Checked first: another version may differ in every other member.
        if document.get("schemaVersion") != SCHEMA_VERSION:
            raise InvalidImage(
                f"record has schema version {document.get('schemaVersion')!r}, not {SCHEMA_VERSION}",
                hint="Use a newer weightyard, or build the image again.",
            )
        try:
            record = _from_json(document)
            _check(record, data)
        # Any member of an untrusted record may have any type, so all of these errors mean a malformed record.
        except MALFORMED as error:
            raise InvalidImage(f"malformed record: {error!r}") from error
        except WeightyardError as error:
            raise InvalidImage(f"malformed record: {error}") from error
        return record


def _to_json(record: Record) -> dict[str, Any]:
    facts = record.facts
    return {
        "schemaVersion": SCHEMA_VERSION,
        "variant": record.variant,
        "source": {"uri": record.source, "revision": record.revision},
        "license": record.license,
        "model": {
            "architecture": facts.architecture,
            "parameters": facts.parameters,
            "weightBytes": facts.weight_bytes,
            "kvCacheBytesPerToken": facts.kv_cache_bytes_per_token,
            "gpuMemoryBytes": facts.gpu_memory_bytes,
            "contextLength": facts.context_length,
            "dtype": facts.dtype,
            "format": facts.format,
            **_optional_facts(facts),
        },
        "quantization": dict(record.quantization) if record.quantization is not None else None,
        "chunkSize": CHUNK_SIZE,
        "layers": [
            {"digest": str(layer.digest), "size": layer.size, "role": layer.role.value}
            for layer in record.layers
        ],
        "files": [file.to_json() for file in record.files],
        "extra": dict(record.extra),
    }


def _optional_facts(facts: ModelFacts) -> dict[str, Any]:
    """The facts that records leave out where they are unknown."""
    optional = {
        "modelType": facts.model_type,
        "quantization": facts.quantization,
        "kvHeads": facts.kv_heads,
        "tensorParallelSizes": list(facts.tensor_parallel_sizes),
        "pooling": facts.pooling,
        "loraRank": facts.lora_rank,
        "quantizedExperts": facts.quantized_experts,
    }
    return {name: value for name, value in optional.items() if value}


def _from_json(document: Mapping[str, Any]) -> Record:
    # Stores and peers exchange chunks of this size only.
    if document["chunkSize"] != CHUNK_SIZE:
        raise ValueError(f"chunk size {document['chunkSize']!r} is not {CHUNK_SIZE}")
    model = document["model"]
    return Record(
        variant=_text(document["variant"]),
        source=_text(document["source"]["uri"]),
        revision=_text(document["source"]["revision"]),
        license=_text(document["license"]),
        facts=ModelFacts(
            architecture=_text(model["architecture"]),
            parameters=_count(model["parameters"]),
            weight_bytes=_count(model["weightBytes"]),
            kv_cache_bytes_per_token=_count(model["kvCacheBytesPerToken"]),
            gpu_memory_bytes=_count(model["gpuMemoryBytes"]),
            context_length=_count(model["contextLength"]),
            dtype=_text(model["dtype"]),
            format=_text(model["format"]),
            model_type=_text(model.get("modelType", "")),
            quantization=_text(model.get("quantization", "")),
            kv_heads=_count(model.get("kvHeads", 0)),
            tensor_parallel_sizes=tuple(
                _count(size) for size in model.get("tensorParallelSizes", [])
            ),
            pooling=_flag(model.get("pooling", False)),
            lora_rank=_count(model.get("loraRank", 0)),
            quantized_experts=_flag(model.get("quantizedExperts", False)),
        ),
        files=tuple(RecordFile.from_json(value) for value in document["files"]),
        layers=tuple(
            RecordLayer(Digest.parse(value["digest"]), _count(value["size"]), Role(value["role"]))
            for value in document["layers"]
        ),
        quantization=_mapping(document["quantization"], optional=True),
        extra=_mapping(document["extra"]) or {},
    )


def files_by_layer(files: Iterable[RecordFile]) -> dict[Digest, list[RecordFile]]:
    """The files of each layer, in their order."""
    found: dict[Digest, list[RecordFile]] = {}
    for file in files:
        found.setdefault(file.layer, []).append(file)
    return found


def check_files(files: Sequence[RecordFile]) -> None:
    """Check the rules for the files of a record of any kind. Raises InvalidImage."""
    paths = [file.path for file in files]
    directories = {parent for path in paths for parent in parents(path)}
    # A path that is both a file and a directory can't be unpacked.
    if paths != sorted(set(paths)) or directories & set(paths):
        raise InvalidImage("paths are unsorted, repeated or both file and directory")
    # A chunk without a digest couldn't be verified when it comes from a peer.
    for file in files:
        if len(file.chunks) != file.chunk_count() or not all(map(_BLAKE3.fullmatch, file.chunks)):
            raise InvalidImage(f"chunk digests of {file.path!r}")


def _check(record: Record, data: bytes) -> None:
    """Check the rules that a record must obey beyond its types."""
    # Otherwise the model key would not be the digest of the bytes in the image.
    if not _is_canonical(record, data):
        raise InvalidImage("it isn't in canonical form or has unknown members")
    if len(canonical.to_bytes([record.quantization, record.extra])) > _MOST_SAID:
        raise InvalidImage(f"it says more than {_MOST_SAID} bytes beside its files")
    check_files(record.files)
    layers = {layer.digest for layer in record.layers}
    if len(layers) != len(record.layers):
        raise InvalidImage("a layer is listed twice")
    for file in record.files:
        if file.layer not in layers:
            raise InvalidImage(f"{file.path!r} is in a layer that isn't listed")
    # The recipe's size equals the layer's only if the files fill the blob, so reads by recipe stay within it.
    for layer in record.layers:
        if record.recipe(layer.digest).size != layer.size:
            raise InvalidImage(f"files of layer {layer.digest} don't add up to its size")


def _is_canonical(record: Record, data: bytes) -> bool:
    try:
        return record.to_bytes() == data
    except (ValueError, RecursionError):
        return False  # numbers that aren't finite, text that isn't Unicode


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {value!r:.80}")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"expected true or false, got {value!r:.80}")
    return value


def _mapping(value: object, *, optional: bool = False) -> dict[str, Any] | None:
    if isinstance(value, dict) or (optional and value is None):
        return value
    raise TypeError(f"expected an object, got {value!r:.80}")


def _count(value: object) -> int:
    # `type`, not isinstance: JSON's true would pass as 1.
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise ValueError(f"expected a number of 0 or more, got {value!r:.80}")
    return value
