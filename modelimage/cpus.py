"""Variants that an inference server can run on a CPU: one table by engine, variant and instruction set.

The table for GPUs is in `workspace.hardware`; this one is here because the quantizer's evaluation also uses it. A row
lists sets of CPU flags, named as in Linux's /proc/cpuinfo; one complete set is enough. Sources: vLLM 0.32.0's CPU
wheels (only the AVX-512 libraries for x86-64 have the 4-bit operator `cpu_gemm_wna16`; `vllm/platforms/cpu.py` picks
the library; none has the scan of Mamba 1), the lists of kernels by platform in its `model_executor/kernels/linear`
(NVFP4 has none for a CPU; bitsandbytes are CUDA's), its layers (MXFP4's experts want AMX; lightning and Kimi attention
are written in Triton; the platform refuses sparse attention), and its build, which requires AVX2, ASIMD or IBM's
vector facility. A test compares the table with the installed wheel. Engines missing from the table and unknown CPU
flags are never refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CPUINFO: Final = Path("/proc/cpuinfo")
_FLAG_LINES: Final = ("flags", "features")  # x86-64 writes one, Arm and IBM Z the other


@dataclass(frozen=True, slots=True)
class Kernels:
    """CPU flags that a variant's kernels require. An empty `enough`: no CPU can run it.

    `experts`: whether they also support a mixture's quantized experts; `named` is the requirement for messages.
    """

    enough: tuple[frozenset[str], ...] = ()
    named: str = ""
    experts: bool = False


_VECTORS: Final = tuple(frozenset({flag}) for flag in ("avx2", "asimd", "vx"))
_VECTORS_NAMED: Final = "AVX2 (x86-64), ASIMD (Arm) or VX (IBM Z)"
KERNELS: Final[Mapping[str, Mapping[str, Kernels]]] = {
    "vllm": {
        "bf16": Kernels(_VECTORS, _VECTORS_NAMED, experts=True),
        "int8": Kernels(_VECTORS, _VECTORS_NAMED),
        "int4": Kernels((frozenset({"avx512f"}),), "AVX-512"),
        "int8-w8a16": Kernels(),
        "mxfp4": Kernels((frozenset({"amx_tile"}),), "AMX", experts=True),
        "nvfp4": Kernels(),
        "bitsandbytes": Kernels(),
    }
}
# Model types with layers that have no kernels for CPUs, and the name of these layers.
WITHOUT_KERNELS: Final[Mapping[str, Mapping[str, str]]] = {
    "vllm": {
        **dict.fromkeys(("mamba", "falcon_mamba", "jamba"), "Mamba 1"),
        **dict.fromkeys(("minimax", "minimax_text_01", "minimax_m1"), "lightning attention"),
        **dict.fromkeys(("deepseek_v32", "glm_moe_dsa"), "sparse attention"),
        "kimi_linear": "Kimi delta attention",
    }
}
_NAMES: Final = {"vllm": "vLLM"}
# The CPU flags that the table uses; nodes need to report no others.
FLAGS: Final = frozenset[str]().union(
    *(each for row in KERNELS.values() for kernels in row.values() for each in kernels.enough)
)


def cpu_refusal(
    engine: str, variant: str, flags: frozenset[str] | None, *, experts: bool = False
) -> str | None:
    """Why an engine can't serve a variant on a CPU with these flags (None: unknown); None if it can.

    `experts`: the model is a mixture whose experts are stored in the variant's precision.
    """
    kernels = KERNELS.get(engine, {}).get(variant)
    if kernels is None:
        return None
    name = _NAMES[engine]
    if not kernels.enough:
        return f"{name} serves {variant} on GPUs only"
    # Kernels for a mixture's experts are others than those for linear layers, and fewer exist.
    if experts and not kernels.experts:
        return f"{name} serves {variant} experts on GPUs only"
    # Unknown flags refuse nothing: a wrong refusal can't be overruled, a wrong permission fails visibly.
    if flags is None or any(each <= flags for each in kernels.enough):
        return None
    return f"{name} serves {variant} only on CPUs with {kernels.named}, which is missing here"


def cpu_model_refusal(engine: str, model_type: str) -> str | None:
    """Why an engine can't serve a model on any CPU, whatever its precision; None if it can, or if it isn't known."""
    layers = WITHOUT_KERNELS.get(engine, {}).get(model_type)
    return (
        None if layers is None else f"{_NAMES[engine]} serves {layers} ({model_type}) on GPUs only"
    )


def cpu_condition(engine: str, variant: str) -> str | None:
    """The CPU requirement of a variant, for messages; None if every CPU that the engine supports meets it."""
    kernels = KERNELS.get(engine, {}).get(variant)
    if kernels is None or kernels.enough in ((), _VECTORS):
        return None
    return kernels.named


def parse_cpuinfo(text: str) -> frozenset[str] | None:
    """The flags common to all processors in /proc/cpuinfo; None if it lists no flags (POWER, RISC-V)."""
    found: list[frozenset[str]] = []
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip().lower() in _FLAG_LINES:
            found.append(frozenset(value.split()))
    return frozenset.intersection(*found) if found else None


def local_cpu_flags() -> frozenset[str] | None:
    """This machine's CPU flags; None if the kernel doesn't list them."""
    try:
        return parse_cpuinfo(CPUINFO.read_text())
    except OSError:
        return None


def local_cpus() -> tuple[frozenset[str], ...]:
    """This machine's flags as a planner takes them: one set, or none when they aren't known."""
    flags = local_cpu_flags()
    return () if flags is None else (flags,)
