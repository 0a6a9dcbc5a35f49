"""Selects the tensors of a checkpoint to quantize, with a reason for each one that is kept.

Decided from `config.json` and the safetensors headers alone, so it can be printed before any weights are read. The
rules are those of inference servers: projections that they fuse into one kernel share a precision, and what they never
quantize (heads, embeddings, norms, routers, towers) stays as published. Pure; no files, no numpy.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from modelimage.errors import InvalidCheckpoint
from modelimage.safetensors import TensorInfo
from quantize.errors import AlreadyQuantized, IncompatibleOptions, UnsupportedArchitecture
from quantize.experts import Matrix, is_fused_experts, split_experts
from quantize.schemes import GROUP_SIZES, Format, Numeric

FLOAT_DTYPES: Final = frozenset({"BF16", "F16", "F32"})
_CONV1D_MODELS: Final = frozenset(
    {"gpt2", "openai-gpt", "ctrl", "imagegpt", "decision_transformer", "gptsan-japanese"}
)
_QUANTIZED_SUFFIXES: Final = (
    ".weight_packed", ".qweight", ".weight_scale", ".weight_scale_inv", ".qzeros", "_blocks",
    ".absmax", ".weight.quant_state.bitsandbytes__nf4",
)  # fmt: skip

# Patterns for a segment of a module name, tried in this order.
_REASONS: Final[Sequence[tuple[str, re.Pattern[str]]]] = (
    (
        "output head",
        re.compile(r"lm_head|embed_out|output_head|score|classifier|v_head|qa_outputs"),
    ),
    ("vision or audio tower", re.compile(r"(vision|visual|audio|image|speech|siglip|sam)(_\w+)?")),
    ("projector", re.compile(r"\w*projector|connector|aligner|merger|modality_projection")),
    ("embedding", re.compile(r"\w*embed\w*|wte|wpe")),
    ("norm", re.compile(r"\w*norm\w*|ln_\w+|ln\d*")),
    # Whole segments are compared: `gate` is a router, and an MLP's `gate_proj` is none.
    ("router", re.compile(r"gate|router|shared_expert_gate|wg")),
    ("convolution", re.compile(r"\w*conv1d\w*|\w*conv")),
    ("linear attention", re.compile(r"linear_attn|mamba|ssm")),
    ("multi-token prediction", re.compile(r"mtp\w*|nextn\w*")),
)

# Projections that servers load as one matrix, by the last segment of their module names.
_FUSED: Final[Sequence[frozenset[str]]] = (
    frozenset({"q_proj", "k_proj", "v_proj"}),
    frozenset({"gate_proj", "up_proj"}),
    frozenset({"w1", "w3"}),
    frozenset({"wq", "wk", "wv"}),
    frozenset({"query", "key", "value"}),
    frozenset({"q_a_proj", "kv_a_proj_with_mqa"}),
)
_EXPERT = re.compile(r"(.*\.experts)\.\d+\..*")


@dataclass(frozen=True, slots=True)
class TensorSelection:
    """The tensors to quantize and those to keep.

    `matrices`: source tensor to its matrices (several for fused experts); `kept`: each module whose weight matrix stays
    in 16 bits, to the reason; `group`: 0 for scales per row.
    """

    matrices: Mapping[str, tuple[Matrix, ...]]
    kept: Mapping[str, str]
    group: int

    @property
    def ignored(self) -> tuple[str, ...]:
        """Modules that a loader must not quantize: linear layers that stay in 16 bits."""
        # Loaders never quantize these kinds, so they needn't be listed.
        silent = {"embedding", "norm", "convolution"}
        names = {name for name, reason in self.kept.items() if reason not in silent}
        # Loaders make an output head also where it is tied to the embedding, and no tensor has its name.
        return tuple(sorted(names | {"lm_head"}))


def check_config(config: Mapping[str, Any]) -> str:
    """The architecture's name. Raises InvalidCheckpoint, AlreadyQuantized, UnsupportedArchitecture."""
    method = quantization_method(config)
    if method:
        raise _already(f"by its own config.json ({method})")
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise InvalidCheckpoint(
            "config.json names no architecture",
            hint='Add "architectures", as in the config.json of the model it was trained from.',
        )
    model_type = config.get("model_type")
    if model_type in _CONV1D_MODELS or names[0].startswith("GPT2"):
        raise UnsupportedArchitecture(
            f"{names[0]} keeps its weights transposed (Conv1D), which no quantized format holds",
            hint="Package it as published, without --variant int8 or int4.",
        )
    return names[0]


def quantization_method(config: Mapping[str, Any]) -> str:
    """The quantization method stated in a checkpoint's config; empty when there is none."""
    for key in ("quantization_config", "compression_config"):
        stated = config.get(key)
        if isinstance(stated, Mapping) and stated:
            return str(stated.get("quant_method") or stated.get("format") or "unnamed method")
    # Multimodal configs nest the language model's.
    nested = config.get("text_config")
    return quantization_method(nested) if isinstance(nested, Mapping) else ""


def select(
    config: Mapping[str, Any],
    tensors: Iterable[TensorInfo],
    *,
    numeric: Numeric,
    format_: Format,
    group_size: int | None,
) -> TensorSelection:
    """Select among the tensors of all shards together: fused parts may lie in different shards.

    Raises InvalidCheckpoint, AlreadyQuantized, UnsupportedArchitecture;
    IncompatibleOptions when nothing would be quantized.
    """
    check_config(config)
    candidates: dict[str, tuple[Matrix, ...]] = {}
    kept: dict[str, str] = {}
    for tensor in tensors:
        _check_not_quantized(tensor)
        found, reason = _candidate(config, tensor)
        if found:
            candidates[tensor.name] = found
        elif reason:
            kept[_module(tensor.name)] = reason
    # One group size for the whole checkpoint: loaders read it from one place in the config.
    everything = [matrix for found in candidates.values() for matrix in found]
    # Before the misfits, which depend on the group.
    group = _choose_group(everything, group_size) if numeric.grouped else 0
    misfits = {m.module: r for m in everything if (r := _misfit(m, numeric, format_, group))}
    misfits |= _with_siblings(everything, misfits)
    selected = {
        name: found
        for name, found in candidates.items()
        if not any(matrix.module in misfits for matrix in found)
    }
    if not selected:
        raise _nothing_left(misfits, group_size)
    return TensorSelection(selected, kept | misfits, group)


def _candidate(
    config: Mapping[str, Any], tensor: TensorInfo
) -> tuple[tuple[Matrix, ...] | None, str]:
    """The matrices of a tensor, or the reason to keep it ("" for a tensor that isn't a weight matrix)."""
    segments = tensor.name.split(".")
    if is_fused_experts(tensor) and tensor.dtype in FLOAT_DTYPES:
        return split_experts(config, tensor), ""
    # Three and four dimensions are convolutions, kept with a reason.
    if segments[-1] != "weight" or len(tensor.shape) not in (2, 3, 4):
        return None, ""
    for reason, pattern in _REASONS:
        if any(pattern.fullmatch(segment) for segment in segments[:-1]):
            return None, reason
    if len(tensor.shape) != 2:
        return None, "not a matrix"
    if tensor.dtype not in FLOAT_DTYPES:
        return None, f"dtype {tensor.dtype}"
    rows, columns = tensor.shape
    return (Matrix(_module(tensor.name), tensor.name, rows, columns, 0, columns, 1),), ""


def _check_not_quantized(tensor: TensorInfo) -> None:
    if tensor.dtype.startswith("F8_") or tensor.dtype in ("F4", "F6_E2M3", "F6_E3M2"):
        raise _already(f"tensor {tensor.name} is {tensor.dtype}")
    if tensor.name.endswith(_QUANTIZED_SUFFIXES):
        raise _already(f"it holds {tensor.name}")


def _choose_group(matrices: Sequence[Matrix], requested: int | None) -> int:
    """Choose one group size for the checkpoint: the largest that divides every matrix that the smallest divides.

    A requested size is used in any case; matrices that it doesn't divide stay in 16 bits.
    """
    if requested is not None:
        return requested
    fitting = [m.columns for m in matrices if m.columns % GROUP_SIZES[-1] == 0]
    return next(
        (size for size in GROUP_SIZES if all(columns % size == 0 for columns in fitting)),
        GROUP_SIZES[-1],
    )


def _misfit(matrix: Matrix, numeric: Numeric, format_: Format, group: int) -> str:
    """The reason why a matrix's shape can't be quantized; empty when it can."""
    if matrix.rows == 0 or matrix.columns == 0:
        return "empty"
    if group and matrix.columns % group:
        return f"no group of {group} divides its {matrix.columns} columns"
    # `qzeros` packs 8 rows into one word.
    if format_ is Format.GPTQ and matrix.rows % 8:
        return f"its {matrix.rows} rows aren't a multiple of 8"
    if format_ is Format.INT_QUANTIZED and (matrix.rows % 16 or matrix.columns % 16):
        return "8-bit kernels need multiples of 16 rows and columns"
    if numeric.packed and matrix.columns % (32 // numeric.bits):
        return f"its {matrix.columns} columns don't fill 32-bit words"
    return ""


def _with_siblings(matrices: Iterable[Matrix], misfits: Mapping[str, str]) -> dict[str, str]:
    """Keep all siblings of a kept matrix: fused projections, and all experts of a layer.

    Repeated until nothing changes, since an expert's projections belong to both kinds of family.
    """
    families: dict[object, set[str]] = defaultdict(set)
    for matrix in matrices:
        for family in _families(matrix):
            families[family].add(matrix.module)
    out = dict(misfits)
    changed = True
    while changed:
        changed = False
        for members in families.values():
            # Sorted: the reason must not depend on a set's order.
            culprit = next((name for name in sorted(members) if name in out), None)
            fresh = members - out.keys() if culprit else set()
            out |= dict.fromkeys(fresh, f"loaded as one with {culprit}")
            changed |= bool(fresh)
    return out


def _families(matrix: Matrix) -> list[object]:
    parent, _, last = matrix.module.rpartition(".")
    families: list[object] = [(parent, fused) for fused in _FUSED if last in fused]
    expert = _EXPERT.fullmatch(matrix.module)
    return [*families, expert[1], matrix.tensor] if expert else [*families, matrix.tensor]


def _nothing_left(misfits: Mapping[str, str], requested: int | None) -> Exception:
    if not misfits:
        return UnsupportedArchitecture(
            "the checkpoint has no weight matrix that can be quantized",
            hint="Package it as published.",
        )
    name, reason = next(iter(sorted(misfits.items())))
    more = f" (and {len(misfits) - 1} more)" if len(misfits) > 1 else ""
    hint = (
        "Leave --group-size out." if requested else "Package it as published, or try --scheme int8."
    )
    return IncompatibleOptions(f"nothing can be quantized: {name}: {reason}{more}", hint=hint)


def _already(what: str) -> AlreadyQuantized:
    return AlreadyQuantized(
        f"the checkpoint is already quantized: {what}",
        hint="Package it as published, or start from the 16-bit original.",
    )


def _module(tensor: str) -> str:
    return tensor.removesuffix(".weight")
