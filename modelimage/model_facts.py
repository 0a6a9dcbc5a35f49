"""Facts about a model, derived from its configuration and its weight files' tensor headers. Pure.

Independent of the image's format and the files' location: `file_facts` reads only the few bytes it needs.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from modelimage import gpu_memory, safetensors
from modelimage.checkpoint_files import CONFIG
from modelimage.errors import InvalidImage
from modelimage.ranges import ByteRange
from modelimage.record import ModelFacts
from modelimage.safetensors import Header, TensorInfo

# Configs are read into memory, so untrusted ones are bounded.
_MAX_CONFIG_BYTES: Final = 64 << 20

# The names in torch, transformers and ModelPack for the dtypes that safetensors abbreviates.
_DTYPE_NAMES: Final[Mapping[str, str]] = {
    "BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "I8": "int8", "U8": "uint8", "I32": "int32",
}  # fmt: skip
# Dtypes that quantized integers are stored in.
_PACKED: Final = frozenset({"I32", "U32", "I8", "U8"})

# Returns a byte range of the file at a path.
ReadRange = Callable[[str, ByteRange], bytes]


def model_facts(config: Mapping[str, Any], headers: Iterable[Header]) -> ModelFacts:
    """The model facts of a record, from `config.json` ({} if there is none) and all headers."""
    tensors = [tensor for header in headers for tensor in header.tensors]
    estimate = gpu_memory.estimate(config, tensors)
    architectures = config.get("architectures")
    named = architectures[0] if isinstance(architectures, list) and architectures else ""
    return ModelFacts(
        architecture=named if isinstance(named, str) else "",
        parameters=estimate.parameters,
        weight_bytes=estimate.weight_bytes,
        kv_cache_bytes_per_token=estimate.kv_cache_bytes_per_token,
        gpu_memory_bytes=estimate.gpu_memory_bytes(),
        context_length=estimate.context_length,
        dtype=_dtype(config, tensors),
    )


def file_facts(sizes: Mapping[str, int], read: ReadRange) -> ModelFacts:
    """The facts of a model given its files' sizes in bytes: safetensors in the root directory, else GGUF.

    Raises InvalidImage if there is neither or if they are malformed, and any error of `read`.
    """
    weights = [path for path in sizes if path.endswith(".safetensors") and "/" not in path]
    if weights:
        headers = [_header(path, sizes[path], read) for path in sorted(weights)]
        return model_facts(_config(sizes, read), headers)
    gguf = sum(size for path, size in sizes.items() if path.endswith(".gguf"))
    if not gguf:
        raise InvalidImage(
            "the image holds no weights that an engine serves: neither safetensors nor GGUF",
            hint="Choose a model image.",
        )
    return ModelFacts(weight_bytes=gguf, gpu_memory_bytes=gguf, format="gguf")


def _header(path: str, size: int, read: ReadRange) -> Header:
    start = safetensors.LENGTH_BYTES
    prefix = read(path, ByteRange(0, min(size, start)))
    length = safetensors.header_length(prefix, file_size=size, name=path)
    return safetensors.parse_header(
        read(path, ByteRange(start, start + length)), file_size=size, name=path
    )


def _config(sizes: Mapping[str, int], read: ReadRange) -> dict[str, Any]:
    size = sizes.get(CONFIG, 0)
    if not 0 < size <= _MAX_CONFIG_BYTES:
        return {}
    try:
        document = json.loads(read(CONFIG, ByteRange(0, size)))
    except (ValueError, RecursionError) as error:
        raise InvalidImage(f"{CONFIG} is not valid JSON: {error}") from error
    return document if isinstance(document, dict) else {}


def _dtype(config: Mapping[str, Any], tensors: Sequence[TensorInfo]) -> str:
    """The dtype of the quantized matrices if there are any, else the one with the most weight bytes."""
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        sizes[tensor.dtype] += tensor.size
    if not sizes:
        return ""
    # Ties are broken by name: the record, and so the model key, must not depend on the order of tensors.
    most = min(sizes, key=lambda dtype: (-sizes[dtype], dtype))
    bits = gpu_memory.quantized_bits(config)
    if bits and not _PACKED.isdisjoint(sizes):
        return f"int{bits}"
    return _DTYPE_NAMES.get(most, most.lower())
