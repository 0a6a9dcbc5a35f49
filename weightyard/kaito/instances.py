"""The GPUs of the instance types that KAITO's documents name, by the clouds' documentation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, slots=True)
class InstanceGpus:
    """The GPUs of one machine, by the name that `spec.resources.gpu` takes."""

    gpu: str
    count: int


def _sizes(family: str, gpu: str, counts: Mapping[str, int]) -> dict[str, InstanceGpus]:
    return {f"{family}.{size}": InstanceGpus(gpu, count) for size, count in counts.items()}


_SMALL: Final = {"xlarge": 1, "2xlarge": 1, "4xlarge": 1, "8xlarge": 1, "16xlarge": 1}
INSTANCES: Final[Mapping[str, InstanceGpus]] = MappingProxyType(
    {
        # Azure
        "Standard_NC4as_T4_v3": InstanceGpus("T4", 1),
        "Standard_NC8as_T4_v3": InstanceGpus("T4", 1),
        "Standard_NC16as_T4_v3": InstanceGpus("T4", 1),
        "Standard_NC64as_T4_v3": InstanceGpus("T4", 4),
        "Standard_NC6s_v3": InstanceGpus("V100-16GB", 1),
        "Standard_NC12s_v3": InstanceGpus("V100-16GB", 2),
        "Standard_NC24s_v3": InstanceGpus("V100-16GB", 4),
        "Standard_NV36ads_A10_v5": InstanceGpus("A10", 1),
        "Standard_NV36adms_A10_v5": InstanceGpus("A10", 1),
        "Standard_NV72ads_A10_v5": InstanceGpus("A10", 2),
        "Standard_NC24ads_A100_v4": InstanceGpus("A100-80GB", 1),
        "Standard_NC48ads_A100_v4": InstanceGpus("A100-80GB", 2),
        "Standard_NC96ads_A100_v4": InstanceGpus("A100-80GB", 4),
        "Standard_ND96asr_v4": InstanceGpus("A100", 8),
        "Standard_ND96asr_A100_v4": InstanceGpus("A100", 8),
        "Standard_ND96amsr_A100_v4": InstanceGpus("A100-80GB", 8),
        "Standard_NC40ads_H100_v5": InstanceGpus("H100-NVL", 1),
        "Standard_NCC40ads_H100_v5": InstanceGpus("H100-NVL", 1),
        "Standard_NC80adis_H100_v5": InstanceGpus("H100-NVL", 2),
        "Standard_ND96isr_H100_v5": InstanceGpus("H100", 8),
        "Standard_ND96isr_H200_v5": InstanceGpus("H200", 8),
        # AWS
        **_sizes("g4dn", "T4", {**_SMALL, "12xlarge": 4, "metal": 8}),
        **_sizes("g5", "A10G", {**_SMALL, "12xlarge": 4, "24xlarge": 4, "48xlarge": 8}),
        **_sizes("g6", "L4", {**_SMALL, "12xlarge": 4, "24xlarge": 4, "48xlarge": 8}),
        **_sizes("gr6", "L4", {"4xlarge": 1, "8xlarge": 1}),
        **_sizes("g6e", "L40S", {**_SMALL, "12xlarge": 4, "24xlarge": 4, "48xlarge": 8}),
        "p4d.24xlarge": InstanceGpus("A100", 8),
        "p4de.24xlarge": InstanceGpus("A100-80GB", 8),
        "p5.48xlarge": InstanceGpus("H100", 8),
        "p5e.48xlarge": InstanceGpus("H200", 8),
        "p5en.48xlarge": InstanceGpus("H200", 8),
    }
)
