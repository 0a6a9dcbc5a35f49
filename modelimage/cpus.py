"""Variants that an inference server can run on a CPU: one table by engine, variant and instruction set.

The table for GPUs is in `workspace.hardware`; this one is here because the quantizer's evaluation also uses it. A row
lists sets of CPU flags, named as in Linux's /proc/cpuinfo; one complete set is enough. Sources: vLLM 0.32.0's CPU
wheels (only the AVX-512 libraries for x86-64 have the 4-bit operator `cpu_gemm_wna16`; `vllm/platforms/cpu.py` picks
the library; none has the scan of Mamba 1), the lists of kernels by platform in its `model_executor/kernels/linear`
(NVFP4 and MXFP8 have none for a CPU; FP8 with scales for blocks wants AMX), its `layers/fused_moe/experts` (experts of
8 and 4 bits want AMX, of INT8 on Arm nothing more), its layers (lightning and Kimi attention are written in Triton; the
platform refuses sparse attention), and its build, which requires AVX2, ASIMD or IBM's vector facility. A test compares
the table with the installed wheel. Engines missing from the table and unknown CPU flags are never refused.
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

    `experts`: what the kernels for a mixture's experts in this precision require, which are others; `named` and
    `experts_named` are the requirements for messages.
    """

    enough: tuple[frozenset[str], ...] = ()
    named: str = ""
    experts: tuple[frozenset[str], ...] = ()
    experts_named: str = ""


_AMX: Final = (frozenset({"amx_tile"}),)
_AMX_OR_ARM: Final = (*_AMX, frozenset({"asimd"}))
_VECTORS: Final = tuple(frozenset({flag}) for flag in ("avx2", "asimd", "vx"))
_VECTORS_NAMED: Final = "AVX2 (x86-64), ASIMD (Arm) or VX (IBM Z)"
KERNELS: Final[Mapping[str, Mapping[str, Kernels]]] = {
    "vllm": {
        "bf16": Kernels(_VECTORS, _VECTORS_NAMED, _VECTORS, _VECTORS_NAMED),
        "int8": Kernels(_VECTORS, _VECTORS_NAMED, _AMX_OR_ARM, "AMX (x86-64) or ASIMD (Arm)"),
        "int4": Kernels((frozenset({"avx512f"}),), "AVX-512", _AMX, "AMX"),
        "fp8": Kernels(_VECTORS, _VECTORS_NAMED, _AMX, "AMX"),
        "int8-w8a16": Kernels(),
        "mxfp4": Kernels(_AMX, "AMX", _AMX, "AMX"),
        "fp8-block": Kernels(_AMX, "AMX", _AMX, "AMX"),
        "nvfp4": Kernels(),
        "mxfp8": Kernels(),
        "w4a8-fp8": Kernels(),
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
    *(
        each
        for row in KERNELS.values()
        for kernels in row.values()
        for each in (*kernels.enough, *kernels.experts)
    )
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
    # Unknown flags refuse nothing: a wrong refusal can't be overruled, a wrong permission fails visibly.
    if flags is None:
        return None
    if not any(each <= flags for each in kernels.enough):
        return f"{name} serves {variant} only on CPUs with {kernels.named}, which is missing here"
    if experts and not any(each <= flags for each in kernels.experts):
        named = kernels.experts_named
        return f"{name} serves {variant} experts only on CPUs with {named}, which is missing here"
    return None


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
    # Of all: the kernel may run a thread on any of them.
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
