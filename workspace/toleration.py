"""A Workspace's `spec.resources.tolerations`: taints that its servers accept."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from cache_agent.api.kube_objects import LabelKey, LabelValue, Strict


class Toleration(Strict):
    """A Kubernetes toleration."""

    key: LabelKey | None = Field(default=None, description="The taint's key; absent, every taint.")
    operator: Literal["Exists", "Equal"] = Field(
        default="Equal", description="Equal compares the value too."
    )
    value: LabelValue | None = Field(default=None, description="The taint's value, for Equal.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="The taint's effect; absent, every effect."
    )
    toleration_seconds: Annotated[int, Field(ge=-(1 << 31), le=(1 << 31) - 1)] | None = Field(
        default=None, description="How long a pod stays after a NoExecute taint; absent, for ever."
    )
