"""A Workspace's `spec.tenancy`: what keeps it and others in the cluster apart."""

from __future__ import annotations

from pydantic import Field

from cache_agent.api.kube_objects import Strict
from workspace.field_types import Amounts, Labels


class NetworkPolicy(Strict):
    """Who may connect to the server, by namespace labels; absent, its own namespace only."""

    allow_from_namespaces: Labels = Field(
        default_factory=dict, description="Labels of the namespaces whose pods may connect."
    )


class Tenancy(Strict):
    """Isolates this Workspace from others in the cluster."""

    quota: Amounts = Field(
        default_factory=dict,
        description="A ResourceQuota of the namespace: requests.nvidia.com/gpu: 4.",
    )
    limits: Amounts = Field(
        default_factory=dict,
        description="A LimitRange: default resources of containers in the namespace.",
    )
    network_policy: NetworkPolicy | None = None
