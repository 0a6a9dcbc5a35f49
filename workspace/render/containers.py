"""What containers of our pods have in common: the restricted standard's settings, and how variables are written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workspace.runtime_spec import EnvVar

Json = dict[str, Any]


def container_security() -> Json:
    """The restricted standard's container settings, plus a read-only root filesystem."""
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def named_values(variables: Mapping[str, str]) -> list[Json]:
    """Variables as a container has them, by name."""
    return [{"name": name, "value": value} for name, value in sorted(variables.items())]


def without_gpus() -> list[Json]:
    """The variable that keeps NVIDIA's runtime from giving a container all GPUs of the node, as many images ask for."""
    return [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"}]


def env_var(each: EnvVar) -> Json:
    """One variable as a container has it."""
    if each.secret is not None:
        reference = {"name": each.secret.name, "key": each.secret.key}
        return {"name": each.name, "valueFrom": {"secretKeyRef": reference}}
    return {"name": each.name, "value": each.value or ""}
