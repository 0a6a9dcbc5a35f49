"""Facts about a model, derived from its configuration and its weight files' tensor headers. Pure.

Independent of the image's format and the files' location: `file_facts` reads only the few bytes it needs.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from modelimage import gpu_memory, safetensors
from modelimage.architectures import brings_adapters, pools
from modelimage.checkpoint_files import CONFIG
from modelimage.errors import InvalidImage
from modelimage.gguf import METADATA_BYTES, GgufFiles, gguf_facts, gguf_files
from modelimage.kv_cache import split_kv_heads, tensor_parallel_sizes
from modelimage.mistral_config import PARAMETERS, is_native, native_config
from modelimage.model_config import context_length, whole_config
from modelimage.quantization import quantization_of
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
# Quantized formats that are called by their own names, as the dtypes that they are stored in say nothing.
_FLOATS: Final = frozenset({"nvfp4", "mxfp4"})

MODULES: Final = "modules.json"
# Where the cache puts the parameters of an Ollama image (`modelimage.foreign.ollama`).
OLLAMA_PARAMETERS: Final = "ollama/params.json"
TOKENIZER_CONFIG: Final = "tokenizer_config.json"
# Where sentence-transformers state the longest input, in vLLM's order.
SENTENCE_CONFIGS: Final = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
# Documents beside `config.json` from which facts are derived.
DOCUMENTS: Final = (MODULES, TOKENIZER_CONFIG, *SENTENCE_CONFIGS)

# The data types of weights that aren't quantized.
_WIDE: Final = frozenset({"BF16", "F16", "F32", "F64"})

# Returns a byte range of the file at a path.
ReadRange = Callable[[str, ByteRange], bytes]


def model_facts(
    config: Mapping[str, Any],
    headers: Iterable[Header],
    documents: Mapping[str, Any] | None = None,
) -> ModelFacts:
    """The model facts of a record, from `config.json` ({} if there is none) and all headers.

    `documents` are the parsed files of `DOCUMENTS` that the model has, by name.
    """
    beside, files = documents or {}, list(headers)
    tensors = [tensor for header in files for tensor in header.tensors]
    estimate = gpu_memory.estimate(config, tensors)
    architectures = config.get("architectures")
    named = architectures[0] if isinstance(architectures, list) and architectures else ""
    architecture = named if isinstance(named, str) else ""
    return ModelFacts(
        architecture=architecture,
        parameters=estimate.parameters,
        weight_bytes=estimate.weight_bytes,
        kv_cache_bytes_per_token=estimate.kv_cache_bytes_per_token,
        gpu_memory_bytes=estimate.gpu_memory_bytes(),
        context_length=_context_length(config, beside),
        dtype=_dtype(config, tensors),
        model_type=whole_config(config).model_type,
        quantization=quantization_of(config).name,
        kv_heads=split_kv_heads(config),
        tensor_parallel_sizes=tensor_parallel_sizes(config),
        pooling=pools(architecture, beside.get(MODULES)),
        lora_rank=_lora_rank(files, bundled=brings_adapters(architecture)),
        quantized_experts=any(map(_is_quantized_expert, tensors)),
    )


def _context_length(config: Mapping[str, Any], beside: Mapping[str, Any]) -> int:
    stated = (_length(beside.get(name), "max_seq_length") for name in SENTENCE_CONFIGS)
    return context_length(
        config,
        sentence_length=next(filter(None, stated), 0),
        tokenizer_length=_length(beside.get(TOKENIZER_CONFIG), "model_max_length"),
    )


def _length(document: object, key: str) -> int:
    value = document.get(key) if isinstance(document, Mapping) else None
    # Tokenizers without a limit state 10**30, some as a float.
    return int(value) if isinstance(value, int | float) and 0 < value < 1 << 40 else 0


def _is_quantized_expert(tensor: TensorInfo) -> bool:
    """Whether a tensor belongs to a mixture's expert and is stored in fewer bits, or as packed integers."""
    return ".experts." in tensor.name and tensor.dtype not in _WIDE


def _lora_rank(headers: Sequence[Header], *, bundled: bool) -> int:
    """The greatest rank of a LoRA adapter's matrices; 0 for a model, whatever adapter lies beside its weights.

    `bundled`: the model is meant to be served with that adapter.
    """
    ranks = [
        [each.shape[0] for each in header.tensors if ".lora_A." in each.name and each.shape]
        for header in headers
    ]
    return max(map(max, filter(None, ranks)), default=0) if bundled or all(ranks) else 0


def file_facts(sizes: Mapping[str, int], read: ReadRange) -> ModelFacts:
    """The facts of a model given its files' sizes in bytes: safetensors in the root directory, else GGUF.

    Raises InvalidImage if there is neither or if they are malformed, and any error of `read`.
    """
    weights = [path for path in sizes if path.endswith(".safetensors") and "/" not in path]
    # First: where a model has both, GGUF is a copy for other engines.
    if weights:
        headers = [_header(path, sizes[path], read) for path in sorted(weights)]
        documents = {name: _beside(name, sizes, read) for name in DOCUMENTS if name in sizes}
        return model_facts(_config(sizes, read), headers, documents)
    files = gguf_files(sizes)
    if files is None:
        raise InvalidImage(
            "the image holds no weights that an engine serves: neither safetensors nor GGUF",
            hint="Choose a model image.",
        )
    return _gguf_facts(files, sizes, read)


def _config(sizes: Mapping[str, int], read: ReadRange) -> Mapping[str, Any]:
    """The configuration that vLLM takes; empty if there is none."""
    config = _document(CONFIG, sizes, read)
    config = config if isinstance(config, dict) else {}
    parameters = _document(PARAMETERS, sizes, read) if is_native(sizes) else None
    return native_config(parameters, config) if isinstance(parameters, dict) else config


def _gguf_facts(files: GgufFiles, sizes: Mapping[str, int], read: ReadRange) -> ModelFacts:
    """The facts of one quantization, with its projector."""
    first = files.parts[0]
    weights = sum(sizes[path] for path in (*files.parts, *filter(None, [files.projector])))
    if not sizes[first]:
        raise InvalidImage(f"{first} is empty", hint="Publish the image again.")
    found = gguf_facts(read(first, ByteRange(0, min(sizes[first], METADATA_BYTES))))
    tokens = min(found.context_length or gpu_memory.DEFAULT_CONTEXT, gpu_memory.DEFAULT_CONTEXT)
    cache = found.cache_bytes or 0
    known = gpu_memory.RUNTIME_BYTES + tokens * cache if found.architecture else 0
    return ModelFacts(
        weight_bytes=weights,
        kv_cache_bytes_per_token=cache,
        gpu_memory_bytes=weights + known,
        context_length=found.context_length,
        format="gguf",
        model_type=found.architecture,
        sampling=_sampling(_beside(OLLAMA_PARAMETERS, sizes, read)),
    )


def _sampling(stated: Any) -> tuple[tuple[str, float], ...]:
    """The numbers among an image's parameters; stop words and anything else are left to clients."""
    if not isinstance(stated, Mapping):
        return ()
    return tuple(
        (str(name), value)
        for name, value in sorted(stated.items())
        # JSON's true is an int in Python.
        if type(value) in (int, float) and math.isfinite(value)
    )


def _header(path: str, size: int, read: ReadRange) -> Header:
    start = safetensors.LENGTH_BYTES
    prefix = read(path, ByteRange(0, min(size, start)))
    length = safetensors.header_length(prefix, file_size=size, name=path)
    return safetensors.parse_header(
        read(path, ByteRange(start, start + length)), file_size=size, name=path
    )


def _beside(name: str, sizes: Mapping[str, int], read: ReadRange) -> Any:
    """A document beside the config; None if it isn't JSON, since only its own library may understand it."""
    with contextlib.suppress(InvalidImage):
        return _document(name, sizes, read)
    return None


def _document(name: str, sizes: Mapping[str, int], read: ReadRange) -> Any:
    """A JSON document of the model; None if it is missing, empty or too large."""
    size = sizes.get(name, 0)
    if not 0 < size <= _MAX_CONFIG_BYTES:
        return None
    try:
        return json.loads(read(name, ByteRange(0, size)))
    except (ValueError, RecursionError) as error:
        raise InvalidImage(f"{name} is not valid JSON: {error}") from error


def _dtype(config: Mapping[str, Any], tensors: Sequence[TensorInfo]) -> str:
    """The dtype of the quantized matrices if there are any, else the one with the most weight bytes."""
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        sizes[tensor.dtype] += tensor.size
    if not sizes:
        return ""
    # Ties are broken by name: the record, and so the model key, must not depend on the order of tensors.
    most = min(sizes, key=lambda dtype: (-sizes[dtype], dtype))
    quantization = quantization_of(config)
    if quantization.name in _FLOATS:
        return quantization.name
    if quantization.bits and not _PACKED.isdisjoint(sizes):
        return f"int{quantization.bits}"
    return _DTYPE_NAMES.get(most, most.lower())
