"""Accelerators: their properties, the variants each runs well, and the memory that a server may use.

Memory and compute capability come from the makers' data sheets and NVIDIA's CUDA GPU list; available kernels from
vLLM's "Supported Hardware" table (features/quantization) and the minimum capabilities in its compressed-tensors
schemes. CPUs are in `modelimage.cpus`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cache_agent.api.kube_objects import parse_quantity
from modelimage.cpus import cpu_condition, cpu_refusal
from modelimage.errors import InvalidInput
from modelimage.quantization import DEFAULT_VARIANT, Variant
from modelimage.record import ModelFacts
from workspace.runtime_spec import Engine
from workspace.schema import Resources, Vendor

_GIB: Final = 1 << 30
# Share of a GPU's memory for the server. Always passed explicitly, so that plan and server agree.
DEFAULT_UTILIZATION: Final = 0.9
# Of a node whose GPUs the spec doesn't count: the most that a replica is planned on.
_NODE_GPUS: Final = 8


@dataclass(frozen=True, slots=True)
class Gpu:
    """One accelerator. `capability` is NVIDIA's compute capability times ten; 0 for other makers."""

    name: str
    memory_bytes: int
    capability: int = 0
    vendor: Vendor = Vendor.NVIDIA


@dataclass(frozen=True, slots=True)
class Hardware:
    """Hardware available to one replica: up to `count` equal GPUs, or a CPU (`gpu` None).

    `memory_bytes` is the memory of a machine for a CPU server; 0 means unknown. `cpus` are the instruction sets of each
    CPU that the server may get, as Linux names them; empty means unknown.
    """

    gpu: Gpu | None = None
    count: int = 0
    memory_bytes: int = 0
    cpus: tuple[frozenset[str], ...] = ()


# Model types that vLLM refuses to compute in float16 (`_FLOAT16_NOT_SUPPORTED_MODELS` in vllm/config/model.py).
NOT_IN_FLOAT16: Final = frozenset({"gemma2", "gemma3", "gemma3_text", "glm4"})
FLOAT32: Final = "float32"
BFLOAT16_CAPABILITY: Final = 80
# From `get_min_capability` of vLLM's quantization methods; 7.0 is the least of any model.
LEAST_CAPABILITY: Final[Mapping[str, int]] = {
    Variant.INT4.value: 75, Variant.INT8_W8A16.value: 75, "awq": 75, "fp8": 75, "fp8-block": 75, "nvfp4": 75,
    "mxfp4": 80, "mxfp8": 80, "torchao": 75, "fp_quant": 100, "experts_int8": 80, "fp8-fbgemm": 80, "fp8-modelopt": 80,
    "w4a8-int8": 75,
}  # fmt: skip
# Of vLLM's schemes the one that takes a single capability (`_is_fp8_w4a8_sm90`).
_HOPPER_ONLY: Final = "w4a8-fp8"
# On CPUs vLLM serves these by the operators of others.
_SAME_CPU_KERNELS: Final[Mapping[str, str]] = {
    "awq": Variant.INT4.value,
    "gptq": Variant.INT4.value,
    "gptq-int8": Variant.INT8_W8A16.value,
    "fp8-fbgemm": "fp8",
    "fp8-modelopt": "fp8",
}
# Published quantizations that vLLM runs on AMD's and Intel's GPUs too.
_ON_OTHER_MAKERS: Final = frozenset(
    {
        "awq",
        "gptq",
        "gptq-int8",
        "fp8",
        "fp8-block",
        "fp8-fbgemm",
        "fp8-modelopt",
        "mxfp4",
        "mxfp8",
        "quark",
    }
)


def _nvidia(name: str, gib: float, capability: int) -> Gpu:
    return Gpu(name, int(gib * _GIB), capability)


# With ECC, GDDR memory keeps a sixteenth for itself: data centres' cards of 16,
# 24 and 48 GB have 15, 22.5 and 45.
_KNOWN: Final = (
    _nvidia("V100", 32, 70), _nvidia("V100-16GB", 16, 70),
    _nvidia("T4", 15, 75), _nvidia("RTX-6000", 24, 75), _nvidia("RTX-2080-Ti", 11, 75),
    _nvidia("A100", 40, 80), _nvidia("A100-80GB", 80, 80), _nvidia("A30", 24, 80),
    _nvidia("A10", 22.5, 86), _nvidia("A10G", 22.5, 86), _nvidia("A16", 15, 86), _nvidia("A40", 45, 86),
    _nvidia("A2", 15, 86), _nvidia("RTX-A6000", 48, 86), _nvidia("RTX-3090", 24, 86),
    _nvidia("L4", 22.5, 89), _nvidia("L40", 45, 89), _nvidia("L40S", 45, 89),
    _nvidia("RTX-4090", 24, 89), _nvidia("RTX-6000-Ada", 48, 89),
    _nvidia("H100", 80, 90), _nvidia("H100-NVL", 94, 90), _nvidia("H200", 141, 90), _nvidia("GH200", 96, 90),
    _nvidia("B200", 180, 100), _nvidia("GB200", 186, 100), _nvidia("B300", 268, 103),
    _nvidia("RTX-5090", 32, 120), _nvidia("RTX-PRO-6000", 96, 120),
    Gpu("MI210", 64 * _GIB, vendor=Vendor.AMD), Gpu("MI250X", 64 * _GIB, vendor=Vendor.AMD),
    Gpu("MI300X", 192 * _GIB, vendor=Vendor.AMD), Gpu("MI325X", 256 * _GIB, vendor=Vendor.AMD),
    Gpu("Max-1550", 64 * _GIB, vendor=Vendor.INTEL), Gpu("Arc-B60", 24 * _GIB, vendor=Vendor.INTEL),
)  # fmt: skip
GPUS: Final[Mapping[str, Gpu]] = {gpu.name: gpu for gpu in _KNOWN}


def find_gpu(name: str) -> Gpu | None:
    """Finds a GPU in the table by any usual spelling: `L4`, `NVIDIA-L4`, `nvidia a100 80gb pcie`. None when unknown.

    The longest table name that occurs in the text as whole words wins: `A100-80GB` before `A100`.
    """
    words = _words(name)
    matches = [gpu for gpu in _KNOWN if _contains(words, _words(gpu.name))]
    return max(matches, key=lambda gpu: len(gpu.name), default=None)


def requested_hardware(resources: Resources) -> Hardware:
    """The hardware that a spec requests, for planning without a machine. Raises InvalidInput if too little is said."""
    if resources.gpus == 0:
        memory = parse_quantity(resources.memory) if resources.memory else 0
        return Hardware(memory_bytes=memory)
    gpu = _asked_gpu(resources)
    shared = resources.fraction is not None or resources.mig_profile is not None
    return Hardware(gpu, 1 if shared else resources.gpus or _NODE_GPUS * resources.nodes)


def kernels_of(variant: str, facts: ModelFacts) -> str:
    """The kernels that the weights need: of the quantization that they were published in, else of the variant."""
    published = facts.quantization
    # Of GPTQ's widths, CPUs run one.
    return (
        f"{published}-int8"
        if (published, facts.dtype) == ("gptq", "int8")
        else published or variant
    )


def refusal(
    hardware: Hardware, variant: str, engine: Engine = Engine.VLLM, *, experts: bool = False
) -> str | None:
    """The reason why this hardware doesn't run a variant well; None when it does.

    `variant` may also be the name of a published quantization (`modelimage.quantization`). `experts`: the model is a
    mixture with experts in this precision.
    """
    gpu = hardware.gpu
    if gpu is None:
        kernels = _SAME_CPU_KERNELS.get(variant, variant)
        # The scheduler may choose any of these CPUs: one that can't run it is enough.
        refused = (
            cpu_refusal(engine.value, kernels, flags, experts=experts) for flags in hardware.cpus
        )
        return next(filter(None, refused), None) or cpu_refusal(engine.value, kernels, None)
    if gpu.vendor is Vendor.NVIDIA:
        # Capability 0 means that only the memory is known: nothing is refused on a guess.
        return _nvidia_refusal(gpu, variant) if gpu.capability else None
    runs = {DEFAULT_VARIANT, *_ON_OTHER_MAKERS}
    if gpu.vendor is Vendor.INTEL:
        runs.add(Variant.INT4.value)
    return None if variant in runs else f"vLLM has no {variant} kernels for {gpu.vendor.value} GPUs"


def cpu_need(variant: str, engine: Engine = Engine.VLLM) -> str | None:
    """What a CPU must have to run a variant or a published quantization; None if common ones have it."""
    return cpu_condition(engine.value, _SAME_CPU_KERNELS.get(variant, variant))


def _nvidia_refusal(gpu: Gpu, variant: str) -> str | None:
    has = f"{gpu.name} has {gpu.capability // 10}.{gpu.capability % 10}"
    if gpu.capability < 70:
        return f"vLLM needs compute capability 7.0, {has}"
    if variant == Variant.INT8.value and not 75 <= gpu.capability < 100:
        return f"vLLM's INT8 kernels are for compute capability 7.5 to 9.0, {has}"
    if variant == _HOPPER_ONLY and gpu.capability != 90:
        return f"vLLM's kernels for {variant} are for compute capability 9.0 alone, {has}"
    least = LEAST_CAPABILITY.get(variant, 0)
    if gpu.capability < least:
        return f"vLLM's kernels for {variant} need compute capability {least // 10}.{least % 10}, {has}"
    return None


def compute_dtype(gpu: Gpu | None, model_type: str = "") -> str | None:
    """The compute dtype to force when the model's default won't work: float16 before Ampere, bfloat16 on a CPU.

    Models that aren't stable in float16 are computed in float32 before Ampere.
    """
    if gpu is None:
        return "bfloat16"
    if not 0 < gpu.capability < BFLOAT16_CAPABILITY:
        return None
    return FLOAT32 if model_type in NOT_IN_FLOAT16 else "float16"


def _asked_gpu(resources: Resources) -> Gpu:
    known = find_gpu(resources.gpu) if resources.gpu else None
    memory = parse_quantity(resources.gpu_memory) if resources.gpu_memory else 0
    # An explicit gpuMemory wins over the MIG profile, and that over the table, so that a spec can
    # describe GPUs that the table lacks.
    if resources.mig_profile is not None:
        memory = memory or _mig_memory(resources.mig_profile)
    memory = memory or (known.memory_bytes if known else 0)
    if known and known.vendor is not resources.vendor:
        raise InvalidInput(
            f"spec.resources.gpu: {known.name} is by {known.vendor.value}, and vendor is {resources.vendor.value}",
            hint=f"Set spec.resources.vendor: {known.vendor.value}.",
        )
    if memory:
        name = resources.gpu or resources.mig_profile or "GPU"
        return Gpu(name, memory, known.capability if known else 0, resources.vendor)
    if resources.gpu:
        close = _close_gpu(resources.gpu)
        raise InvalidInput(
            f"spec.resources.gpu: {resources.gpu!r} isn't a known GPU{f'; did you mean {close!r}?' if close else ''}",
            hint="`weightyard help gpus` lists them; for another one give spec.resources.gpuMemory too, such as 24Gi.",
        )
    raise InvalidInput(
        "the spec names no GPU, so no variant can be chosen",
        hint="Set spec.resources.gpu (such as L4) or spec.resources.gpuMemory, or gpus: 0 for a CPU server.",
    )


def _close_gpu(name: str) -> str | None:
    """The table's name that is written most like this one, signs between letters aside."""
    known = {"".join(_words(gpu.name)): gpu.name for gpu in _KNOWN}
    close = difflib.get_close_matches("".join(_words(name)), known, n=1)
    return known[close[0]] if close else None


def _mig_memory(profile: str) -> int:
    match = re.search(r"\.(\d+)gb", profile)
    if match is None:
        raise InvalidInput(
            f"not a MIG profile: {profile!r}", hint="Write it as NVIDIA does, such as 1g.10gb."
        )
    return int(match[1]) * _GIB


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]


def _contains(words: list[str], part: list[str]) -> bool:
    return any(words[i : i + len(part)] == part for i in range(len(words) - len(part) + 1))
