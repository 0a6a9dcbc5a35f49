"""What an inference server runs on a CPU: one table by engine, variant and instruction set.

The GPUs' table is in `workspace.hardware`; this one is here since the quantizer's evaluation reads it too. A row lists
sets of CPU flags, as Linux names them in /proc/cpuinfo, of which any one is enough. Sources: vLLM 0.32.0's CPU wheels
(the 4-bit operator `cpu_gemm_wna16` is in the AVX-512 libraries for x86-64 alone; `vllm/platforms/cpu.py` picks the
library), and its build, which requires AVX2, Arm's ASIMD or IBM's vector facility. A test holds the table against the
installed wheel. An engine that isn't in the table, like flags that aren't known, is refused nothing.
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
    """What a variant's kernels need of a CPU. `enough` empty: there are none for any CPU.

    `experts` says whether they also cover a mixture's quantized experts; `named` is the requirement in words.
    """

    enough: tuple[frozenset[str], ...] = ()
    named: str = ""
    experts: bool = False


_VECTORS: Final = tuple(frozenset({flag}) for flag in ("avx2", "asimd", "vx"))
KERNELS: Final[Mapping[str, Mapping[str, Kernels]]] = {
    "vllm": {
        "bf16": Kernels(_VECTORS, "AVX2 (on x86-64) or ASIMD (on Arm)", experts=True),
        "int8": Kernels(_VECTORS, "AVX2 (on x86-64) or ASIMD (on Arm)"),
        "int4": Kernels((frozenset({"avx512f"}),), "AVX-512"),
        "int8-w8a16": Kernels(),
    }
}


_NAMES: Final = {"vllm": "vLLM"}
# What the table asks of a CPU: of all its flags these are worth passing on.
FLAGS: Final = frozenset[str]().union(
    *(each for row in KERNELS.values() for kernels in row.values() for each in kernels.enough)
)


def cpu_refusal(
    engine: str, variant: str, flags: frozenset[str] | None, *, experts: bool = False
) -> str | None:
    """Why an engine doesn't serve a variant on a CPU with these flags (None: not known); None when it does.

    `experts`: the model is a mixture whose experts are stored in the variant's precision.
    """
    kernels = KERNELS.get(engine, {}).get(variant)
    if kernels is None:
        return None
    name = _NAMES[engine]
    if not kernels.enough:
        return f"{name} serves {variant} on GPUs only"
    if experts and not kernels.experts:
        return f"{name} serves {variant} experts on GPUs only"
    if flags is None or any(each <= flags for each in kernels.enough):
        return None
    return f"{name} serves {variant} only on CPUs with {kernels.named}, which is missing here"


def cpu_condition(engine: str, variant: str) -> str | None:
    """What a CPU must have that not every one has, in words; None when any CPU that the engine runs on will do."""
    kernels = KERNELS.get(engine, {}).get(variant)
    if kernels is None or kernels.enough in ((), _VECTORS):
        return None
    return kernels.named


def parse_cpuinfo(text: str) -> frozenset[str] | None:
    """The flags that every processor of /proc/cpuinfo has; None where it names none (POWER, RISC-V)."""
    found: list[frozenset[str]] = []
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip().lower() in _FLAG_LINES:
            found.append(frozenset(value.split()))
    return frozenset.intersection(*found) if found else None


def local_cpu_flags() -> frozenset[str] | None:
    """This machine's flags; None where the kernel doesn't name them."""
    try:
        return parse_cpuinfo(CPUINFO.read_text())
    except OSError:
        return None
