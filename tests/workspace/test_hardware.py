"""What hardware a spec asks for: GPUs by their names, memory, CPUs, and the type that they compute in."""

from __future__ import annotations

import pytest

from modelimage.errors import InvalidInput
from workspace.hardware import (
    GPUS,
    Gpu,
    Hardware,
    compute_dtype,
    find_gpu,
    requested_hardware,
)
from workspace.schema import Resources

GIB = 1 << 30


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("NVIDIA L4", "L4"), ("nvidia-l40s", "L40S"), ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA-A100-80GB-PCIe", "A100-80GB"), ("Tesla T4", "T4"), ("NVIDIA H100 NVL", "H100-NVL"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX-6000-Ada"), ("MI300X", "MI300X"),
    ],
)  # fmt: skip
def test_find_gpu(text: str, name: str) -> None:
    found = find_gpu(text)
    assert found is not None
    assert found.name == name


@pytest.mark.parametrize("text", ["", "L", "NVIDIA", "A1000", "XH100"])
def test_unknown_gpu(text: str) -> None:
    assert find_gpu(text) is None


@pytest.mark.parametrize(
    ("resources", "memory", "count"),
    [
        ({"gpu": "L4"}, 22.5, 8), ({"gpu": "L4", "gpus": 2}, 22.5, 2), ({"gpu_memory": "48Gi"}, 48, 8),
        ({"gpu": "L4", "gpu_memory": "10Gi"}, 10, 8), ({"gpu": "A100", "mig_profile": "1g.10gb"}, 10, 1),
        ({"gpu": "L4", "fraction": 0.5}, 22.5, 1),
    ],
)  # fmt: skip
def test_asked_hardware(resources: dict[str, object], memory: float, count: int) -> None:
    found = requested_hardware(Resources.model_validate(resources))
    assert found.gpu is not None
    assert (found.gpu.memory_bytes / GIB, found.count) == (memory, count)


@pytest.mark.parametrize(
    "resources", [{}, {"gpu": "Voodoo2"}, {"gpu": "A100", "mig_profile": "huge"}]
)
def test_hardware_that_is_not_known(resources: dict[str, object]) -> None:
    with pytest.raises(InvalidInput) as caught:
        requested_hardware(Resources.model_validate(resources))
    assert caught.value.hint


def test_cpu_hardware() -> None:
    assert requested_hardware(Resources(gpus=0, memory="16Gi")) == Hardware(memory_bytes=16 * GIB)


@pytest.mark.parametrize(
    ("gpu", "dtype"),
    [
        (None, "bfloat16"),
        (GPUS["T4"], "float16"),
        (GPUS["V100"], "float16"),
        (GPUS["L4"], None),
        (GPUS["MI300X"], None),
    ],
)
def test_compute_dtype(gpu: Gpu | None, dtype: str | None) -> None:
    assert compute_dtype(gpu) == dtype


@pytest.mark.parametrize(
    ("name", "meant"), [("H-100", "'H100'"), ("L-40S", "'L40S'"), ("zzz", "known GPU")]
)
def test_an_unknown_gpu_is_told_with_its_field_and_what_is_like_it(name: str, meant: str) -> None:
    with pytest.raises(InvalidInput, match=r"spec\.resources\.gpu: ") as caught:
        requested_hardware(Resources(gpu=name))
    assert meant in str(caught.value)
    assert "help gpus" in str(caught.value.hint)
