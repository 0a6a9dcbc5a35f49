"""The state of a version in the cluster: eligible nodes, nodes that hold it, servers that run it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from workspace.controller.observation.nodes import KubeNode, choose_warm, eligible
from workspace.controller.observation.objects import (
    has_labels,
    is_mounted,
    is_ready,
    node_of,
    nodes_of,
    of_version,
)
from workspace.controller.observation.observed import Observed
from workspace.controller.observation.revisions import Revision
from workspace.node_demands import off_spot
from workspace.render import names

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class CachedState:
    """A version's state. `chosen` nodes should hold it, `warm` nodes do.

    A server spans `nodes`. `parts` are the states for the servers that run on any capacity, and for those that never
    run on spot, where some must not; `on_demand` is their number.
    """

    eligible: tuple[str, ...]
    chosen: tuple[str, ...]
    warm: frozenset[str]
    labelled: frozenset[str]
    on_demand: int = 0
    parts: tuple[CachedState, CachedState] | None = None
    nodes: int = 1

    @property
    def is_cached(self) -> bool:
        """Whether all chosen nodes hold the version. With no node at all, there is nothing to wait for."""
        return set(self.chosen) <= self.warm

    @property
    def missing(self) -> list[str]:
        return [name for name in self.chosen if name not in self.warm]

    def startable(self, replicas: int, running: int) -> int:
        """How many of some replicas may run now: at most the warm nodes, but never fewer than already run."""
        if self.is_cached:
            return replicas
        return min(replicas, max(len(self.warm) // self.nodes, running))


def cached_state(
    revision: Revision, observed: Observed, *, replicas: int, on_demand: int = 0
) -> CachedState:
    """The state of a version for a number of desired replicas, of which some must not run on spot capacity.

    A replica may span nodes.

    Besides the nodes that already run its servers, one warm node is chosen for each replica without a server that has
    mounted it. A server that has, but isn't ready yet, must not count twice: that would warm a node too many for each
    replica that starts. Servers on nodes that can't take pods any more, such as cordoned ones, need a replacement.
    """
    possible = eligible(observed.nodes, revision.resources, gpus=revision.node_gpus)
    servers = serving_pods(observed)
    if not on_demand:
        return _state(revision, observed, possible, servers, replicas=replicas)
    apart = eligible(observed.nodes, off_spot(revision.resources), gpus=revision.node_gpus)
    others, beside = by_capacity(servers)
    second = _state(revision, observed, apart, beside, replicas=on_demand)
    # Nodes of the one aren't chosen for the other, which would leave it without; where both are, both have room.
    own = nodes_of(of_version(others, revision.id))
    left = [node for node in possible if node.name not in second.chosen or node.name in own]
    first = _state(revision, observed, left, others, replicas=replicas - on_demand)
    # One node at least is chosen for any version, and here no server is left to run on it.
    chosen = first.chosen if replicas > on_demand else ()
    return CachedState(
        eligible=tuple(node.name for node in possible),
        chosen=(*second.chosen, *chosen),
        warm=first.warm | second.warm,
        labelled=first.labelled | second.labelled,
        on_demand=on_demand,
        parts=(first, second),
        nodes=revision.nodes,
    )


def nodes_to_warm(
    state: CachedState, revision: Revision, observed: Observed, *, replicas: int
) -> list[str]:
    """The chosen nodes that need a pre-warm pod for a version, until that many of its servers are ready."""
    # Servers on nodes that are being drained need replacements, ready as they are.
    usable = set(state.eligible)
    servers = of_version(serving_pods(observed), revision.id)
    staying = [pod for pod in servers if is_ready(pod) and node_of(pod) in usable]
    beside, pods = sum(map(is_on_demand, staying)), replicas * revision.nodes
    if replicas > 0 and len(staying) >= pods and beside >= min(state.on_demand, pods):
        return []
    # A node whose server has mounted the model needs no pre-warm pod: the server's volume is the lease.
    held = state.labelled | {node_of(pod) for pod in servers if is_mounted(pod)}
    return [name for name in state.chosen if name not in held]


def by_capacity(servers: Iterable[Json]) -> tuple[list[Json], list[Json]]:
    """The servers that run on any capacity, and those that never run on spot."""
    parts: tuple[list[Json], list[Json]] = [], []
    for pod in servers:
        parts[is_on_demand(pod)].append(pod)
    return parts


def is_on_demand(pod: Json) -> bool:
    """Whether a server is one of those that never run on spot capacity."""
    return has_labels(pod, {names.CAPACITY: names.ON_DEMAND})


def _state(
    revision: Revision, observed: Observed, possible: list[KubeNode], servers: list[Json], *, replicas: int
) -> CachedState:  # fmt: skip
    label = names.node_label(revision.key)
    warming = observed.pods(names.PREWARM)
    serving = _nodes_with(servers, revision)
    usable = {node.name for node in possible}
    placed = [pod for pod in _mounted(servers, revision) if node_of(pod) in usable]
    labelled = {node.name for node in observed.nodes if node.holds(label)} & usable
    chosen = choose_warm(
        possible,
        # Those of one server at least: scaled to zero, one node keeps the model
        # for the server that comes first.
        max(
            revision.nodes,
            len(serving & usable) + max(0, replicas * revision.nodes - len(placed)),
        ),
        label=label,
        # What has begun is kept: nodes that serve it, hold it, fetch it. Last those
        # where servers of another version go.
        preference=(serving, labelled, nodes_of(warming), nodes_of(servers)),
    )
    everywhere = _nodes_with(serving_pods(observed), revision)
    return CachedState(
        eligible=tuple(node.name for node in possible),
        chosen=tuple(node.name for node in chosen),
        warm=frozenset(labelled | (everywhere | _nodes_with(warming, revision)) & usable),
        labelled=frozenset(labelled),
        nodes=revision.nodes,
    )


def _nodes_with(pods: list[Json], revision: Revision) -> set[str]:
    """Nodes where pods of a version have their volumes mounted."""
    return nodes_of(_mounted(pods, revision))


def _mounted(pods: list[Json], revision: Revision) -> list[Json]:
    return [pod for pod in of_version(pods, revision.id) if is_mounted(pod)]


def serving_pods(observed: Observed, *, ended: bool = False) -> list[Json]:
    """The pods that serve: servers, and the workers of those that span nodes. `ended`: those that did."""
    return [
        pod for role in (names.SERVER, names.WORKER) for pod in observed.pods(role, ended=ended)
    ]


def server_count(observed: Observed, revision: Revision | None = None) -> tuple[int, int]:
    """The number of the Workspace's servers and of the ready ones; of one version, if given."""
    servers = observed.pods(names.SERVER)
    pods = servers if revision is None else of_version(servers, revision.id)
    return len(pods), sum(map(is_ready, pods))
