"""A Workspace's `spec.resources.provisioning`: who makes the nodes of its servers, and of what capacity."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from cache_agent.api.kube_objects import Strict
from workspace.field_types import MOST_REPLICAS, as_enum

# Each spare is a node with a GPU that nothing uses.
_MOST_SPARES = 64
# A Kueue LocalQueue's name, which is also a label's value.
QueueName = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", max_length=63)
]


class Provisioner(Enum):
    """Who makes nodes: nobody beside the cluster's autoscaler, Karpenter, or Kueue's ProvisioningRequests."""

    NONE = "none"
    KARPENTER = "karpenter"
    KUEUE = "kueue"


class Spot(Enum):
    """Whether servers run on capacity that the cloud may take back."""

    PREFERRED = "preferred"
    ONLY = "only"
    NEVER = "never"


class Capacity(Strict):
    """The capacity that servers run on."""

    spot: Annotated[Spot, as_enum(Spot)] = Spot.PREFERRED
    on_demand_minimum: Annotated[int, Field(ge=0, le=MOST_REPLICAS)] = Field(
        default=0,
        description="With spot: preferred, how many of the replicas run on capacity that isn't spot.",
    )

    @model_validator(mode="after")
    def _mixed(self) -> Self:
        if self.on_demand_minimum and self.spot is not Spot.PREFERRED:
            raise ValueError(
                "onDemandMinimum goes with spot: preferred; with only and never all replicas run on one kind"
            )
        return self


class Provisioning(Strict):
    """Who makes the nodes, and of what capacity. `capacity` absent: whatever comes."""

    by: Annotated[Provisioner, as_enum(Provisioner)] = Provisioner.NONE
    queue: QueueName | None = Field(
        default=None, description="The LocalQueue that admits the servers, with by: kueue."
    )
    capacity: Capacity | None = None
    warm_spares: int = Field(
        default=0, ge=0, le=_MOST_SPARES,
        description="Nodes that hold the model beside those that serve it, for the next servers.",
    )  # fmt: skip

    @model_validator(mode="after")
    def _queued(self) -> Self:
        if self.by is Provisioner.KUEUE and self.queue is None:
            raise ValueError("by: kueue needs queue, the LocalQueue that admits the servers")
        if self.by is not Provisioner.KUEUE and self.queue is not None:
            raise ValueError("queue is for by: kueue: give that, or leave queue out")
        return self
