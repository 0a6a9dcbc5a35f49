"""An agent's heartbeat: a Lease in Weightyard's namespace that it renews, as kubelet does for its node.

A Lease rather than a field of the NodeCache: a NodeCache may take hundreds of kilobytes, and each write of one reaches
every watcher. 5,000 agents write 250 Leases a second, half of what their kubelets write.
"""

from __future__ import annotations

from typing import Final

from cache_agent.api.node_cache import NodeCache
from cache_agent.api.node_reasons import NodeReason

LEASES_API: Final = "coordination.k8s.io/v1"
# Set on every heartbeat Lease, so that they can be listed without the leader's.
HEARTBEAT_LABEL: Final = "weightyard.dev/heartbeat"
HEARTBEAT_SELECTOR: Final = f"{HEARTBEAT_LABEL}=agent"
_PREFIX: Final = "agent-"

# Seconds between two renewals, and without one until an agent counts as silent: two renewals may be lost.
RENEW_SECONDS: Final = 20.0
SILENT_SECONDS: Final = 60.0
# The reason of a silent node's conditions, which are Unknown then.
NO_HEARTBEAT: Final = NodeReason.NO_HEARTBEAT.value


def lease_name(node: str) -> str:
    """The name of a node's heartbeat Lease. With a prefix, because the leader's Lease is in the same namespace."""
    return _PREFIX + node


def node_of(lease_name: str) -> str:
    """The node of a heartbeat Lease."""
    return lease_name.removeprefix(_PREFIX)


def is_silent(cache: NodeCache) -> bool:
    """Whether the controller found that this node's agent renews its Lease no longer."""
    return any(each.reason == NO_HEARTBEAT for each in cache.status.conditions)
