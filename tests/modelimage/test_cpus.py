"""What runs on which CPU: the table against the installed vLLM, and the flags that /proc/cpuinfo names."""

from __future__ import annotations

import importlib
import importlib.util
import mmap
import platform
from pathlib import Path

import pytest

from modelimage.cpus import (
    FLAGS,
    KERNELS,
    WITHOUT_KERNELS,
    cpu_condition,
    cpu_model_refusal,
    cpu_refusal,
    local_cpu_flags,
    parse_cpuinfo,
)

AVX2 = frozenset({"avx2", "fma"})
AVX512 = AVX2 | {"avx512f"}
ARM = frozenset({"asimd", "bf16"})
OLD = frozenset({"sse4_2"})
INT4_OPERATOR = b"cpu_gemm_wna16"


@pytest.mark.parametrize("flags", [AVX2, AVX512, ARM, None])
@pytest.mark.parametrize("variant", ["bf16", "int8"])
def test_common_cpus_serve_16_and_8_bits(variant: str, flags: frozenset[str] | None) -> None:
    assert cpu_refusal("vllm", variant, flags) is None


@pytest.mark.parametrize(("flags", "runs"), [(AVX512, True), (AVX2, False), (ARM, False)])
def test_four_bits_need_avx512(flags: frozenset[str], runs: bool) -> None:
    refused = cpu_refusal("vllm", "int4", flags)
    assert (refused is None) == runs
    assert runs or "AVX-512" in str(refused)


def test_layers_without_kernels_are_refused_by_name() -> None:
    assert cpu_model_refusal("vllm", "jamba") == "vLLM serves Mamba 1 (jamba) on GPUs only"
    assert cpu_model_refusal("vllm", "bamba") is None
    assert cpu_model_refusal("llama.cpp", "jamba") is None


@pytest.mark.parametrize("variant", ["int8-w8a16", "nvfp4", "mxfp8"])
def test_what_no_cpu_runs_is_refused_whatever_its_flags(variant: str) -> None:
    for flags in (None, AVX512, ARM):
        assert cpu_refusal("vllm", variant, flags) == f"vLLM serves {variant} on GPUs only"


@pytest.mark.parametrize("variant", ["int8", "int4", "fp8", "mxfp4"])
def test_quantized_experts_need_amx_on_x86(variant: str) -> None:
    refused = cpu_refusal("vllm", variant, AVX512, experts=True)
    assert refused is not None
    assert "experts" in refused or variant == "mxfp4"
    assert "AMX" in refused
    assert cpu_refusal("vllm", variant, AVX512 | {"amx_tile"}, experts=True) is None
    assert cpu_refusal("vllm", variant, None, experts=True) is None


def test_experts_elsewhere() -> None:
    for flags in (AVX2, AVX512, ARM):
        assert cpu_refusal("vllm", "bf16", flags, experts=True) is None
        assert cpu_refusal("vllm", "fp8", flags) is None
    assert cpu_refusal("vllm", "int8", ARM, experts=True) is None
    assert cpu_refusal("vllm", "fp8", ARM, experts=True) is not None
    assert "GPUs only" in str(cpu_refusal("vllm", "int8-w8a16", AVX512, experts=True))


def test_a_cpu_without_vectors_runs_nothing() -> None:
    assert all(cpu_refusal("vllm", variant, OLD) for variant in KERNELS["vllm"])


def test_what_is_not_in_the_table_is_refused_nothing() -> None:
    assert cpu_refusal("llama.cpp", "int4", OLD) is None
    assert cpu_refusal("vllm", "fp6", OLD) is None
    assert cpu_condition("llama.cpp", "int4") is None


def test_only_a_condition_that_common_cpus_miss_is_named() -> None:
    named = {variant: cpu_condition("vllm", variant) for variant in KERNELS["vllm"]}
    assert {variant: each for variant, each in named.items() if each} == {
        "int4": "AVX-512",
        "mxfp4": "AMX",
        "fp8-block": "AMX",
    }


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512f\nbugs\t\t: none\n", {"fpu", "avx2", "avx512f"}),
        ("processor\t: 0\nFeatures\t: fp asimd sve\n", {"fp", "asimd", "sve"}),
        ("vendor_id  : IBM/S390\nfeatures\t: esan3 zarch vx\n", {"esan3", "zarch", "vx"}),
        ("flags : avx2 avx512f\n\nflags : avx2\n", {"avx2"}),  # what every processor has
        ("processor : 0\ncpu : POWER9\n", None),
        ("", None),
    ],
)  # fmt: skip
def test_the_kernels_words(text: str, flags: set[str] | None) -> None:
    assert parse_cpuinfo(text) == flags


@pytest.mark.torch
def test_this_machines_flags_are_those_that_vllm_chooses_its_library_by() -> None:
    """torch asks the processor itself; Linux hides what it doesn't support."""
    torch_cpu = importlib.import_module("torch").cpu
    flags = local_cpu_flags()
    assert flags is None or ("avx512f" in flags) == torch_cpu._is_avx512_supported()
    assert flags is None or ("avx2" in flags) == torch_cpu._is_avx2_supported()


@pytest.mark.torch
def test_the_installed_vllm_has_the_kernels_that_the_table_says() -> None:
    """Its libraries, one for each instruction set: the 4-bit operator is in those for AVX-512 alone."""
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None, "run `make setup`"
    folder = Path(spec.origin).parent
    if platform.machine() == "x86_64":
        assert not _contains(folder / "_C_AVX2.abi3.so", INT4_OPERATOR)
        assert _contains(folder / "_C_AVX512.abi3.so", INT4_OPERATOR)
    assert _contains(folder / "_C.abi3.so", INT4_OPERATOR) == (platform.machine() == "x86_64")
    assert {"avx2", "avx512f", "asimd", "amx_tile"} <= FLAGS
    kernels = (folder / "model_executor/kernels/linear/__init__.py").read_text()
    nvfp4 = kernels.partition("_POSSIBLE_NVFP4_KERNELS")[2].partition("\n}\n")[0]
    assert "PlatformEnum.CUDA" in nvfp4
    assert "PlatformEnum.CPU" not in nvfp4
    experts = (folder / "model_executor/layers/fused_moe/experts/cpu_moe.py").read_text()
    for kind in ("Mxfp4", "Fp8", "Int4", "Int8"):
        body = experts.partition(f"class CPUExperts{kind}(")[2].partition("\nclass ")[0]
        assert "_is_amx_tile_supported" in body, kind
    assert "CpuArchEnum.ARM" in experts.partition("class ArmCPUExpertsInt8(")[2]
    fp8 = kernels.partition("_POSSIBLE_FP8_KERNELS")[2].partition("\n}\n")[0]
    on_cpus = fp8.partition("PlatformEnum.CPU")[2].partition("]")[0]
    # Written with torch's own operators, for any CPU.
    assert "PerTensorTorchFP8ScaledMMLinearKernel" in on_cpus


@pytest.mark.torch
def test_the_installed_vllm_lacks_the_layers_that_the_table_says() -> None:
    """Fails once vLLM has gained them: then the model types leave the table."""
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent
    mixer = (folder / "model_executor/layers/mamba/ops/mamba_ssm.py").read_text()
    assert "ops.selective_scan_fwd(" in mixer
    for library in folder.glob("_C*.so"):
        assert not _contains(library, b"selective_scan_fwd"), library
    linear = folder / "model_executor/layers/mamba"
    for name in ("linear/minimax_linear_attn.py", "gdn/kimi_gdn_linear_attn.py"):
        assert "triton" in (linear / name).read_text()
        assert "is_cpu" not in (linear / name).read_text()
    platform_of_cpus = (folder / "platforms/cpu.py").read_text()
    assert "Sparse Attention is not supported on CPU" in platform_of_cpus
    known = set(WITHOUT_KERNELS["vllm"].values())
    assert known == {"Mamba 1", "lightning attention", "sparse attention", "Kimi delta attention"}


def _contains(library: Path, word: bytes) -> bool:
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data.find(word) >= 0
