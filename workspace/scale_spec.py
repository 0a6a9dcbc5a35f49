"""A Workspace's `spec.scale`: what sets its number of replicas, within which bounds."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Self

from pydantic import Field, model_validator

from cache_agent.api.kube_objects import NonEmpty, Strict
from workspace.field_types import MOST_REPLICAS, as_enum


class Autoscaler(Enum):
    """What scales the replicas: Weightyard's own loop, KEDA, or a HorizontalPodAutoscaler."""

    BUILTIN = "builtin"
    KEDA = "keda"
    HPA = "hpa"


class Scale(Strict):
    """Scales replicas by queue depth. Windows in seconds."""

    min: Annotated[int, Field(ge=0, le=MOST_REPLICAS)] = Field(
        default=1, description="The fewest replicas."
    )
    max: Annotated[int, Field(ge=1, le=MOST_REPLICAS)] = Field(description="The most replicas.")
    queue_depth: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=4,
        description="Waiting requests per replica above which a replica is added.",
    )
    # At most what a HorizontalPodAutoscaler accepts.
    up_window_seconds: Annotated[int, Field(ge=0, le=3600)] = Field(
        default=15, description="How long more replicas must be needed before one is added."
    )
    down_window_seconds: Annotated[int, Field(ge=0, le=3600)] = Field(
        default=300, description="How long fewer must do before one is removed."
    )
    by: Annotated[Autoscaler, as_enum(Autoscaler)] = Autoscaler.BUILTIN
    prometheus: NonEmpty | None = Field(
        default=None,
        description="Where KEDA reads vLLM's metrics: http://prometheus.monitoring:9090.",
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min is {self.min}, above max, which is {self.max}")
        if self.by is Autoscaler.HPA and self.min == 0:
            raise ValueError(
                "a HorizontalPodAutoscaler can't scale to 0: give min 1, or by: builtin"
            )
        if self.by is Autoscaler.KEDA and self.prometheus is None:
            raise ValueError(
                "by: keda needs prometheus, the address from which KEDA reads the queue depth"
            )
        return self
