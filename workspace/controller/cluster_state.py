"""The state of a version in the cluster: eligible nodes, nodes that hold it, servers that run it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from workspace.controller.nodes import choose_warm, eligible
from workspace.controller.objects import has_labels, is_mounted, is_ready, node_of
from workspace.controller.observed import Observed
from workspace.controller.revisions import Revision
from workspace.render import names

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class CachedState:
    """A version's state. `chosen` nodes should hold it, `warm` nodes do."""

    eligible: tuple[str, ...]
    chosen: tuple[str, ...]
    warm: frozenset[str]
    labelled: frozenset[str]

    @property
    def is_cached(self) -> bool:
        """Whether all chosen nodes hold the version. With no node at all, there is nothing to wait for."""
        return set(self.chosen) <= self.warm

    @property
    def missing(self) -> list[str]:
        return [name for name in self.chosen if name not in self.warm]


def cached_state(revision: Revision, observed: Observed, *, replicas: int) -> CachedState:
    """The state of a version for a number of desired replicas, each of which may span nodes.

    Besides the nodes that already run its servers, one warm node is chosen for each replica without a server that has
    mounted it. A server that has, but isn't ready yet, must not count twice: that would warm a node too many for each
    replica that starts. Servers on nodes that can't take pods any more, such as cordoned ones, need a replacement.
    """
    nodes = observed.nodes
    label = names.node_label(revision.key)
    possible = eligible(nodes, revision.resources, gpus=revision.node_gpus)
    servers, warming = serving_pods(observed), observed.pods(names.PREWARM)
    wanted = replicas * revision.nodes
    serving = _nodes_with(servers, revision)
    usable = {node.name for node in possible}
    placed = [pod for pod in _mounted(servers, revision) if node_of(pod) in usable]
    labelled = {node.name for node in nodes if node.holds(label)} & usable
    chosen = choose_warm(
        possible,
        max(revision.nodes, len(serving & usable) + max(0, wanted - len(placed))),
        label=label,
        preference=(serving, labelled, _nodes_of(warming), _nodes_of(servers)),
    )
    return CachedState(
        eligible=tuple(node.name for node in possible),
        chosen=tuple(node.name for node in chosen),
        warm=frozenset(labelled | (serving | _nodes_with(warming, revision)) & usable),
        labelled=frozenset(labelled),
    )


def nodes_to_warm(
    state: CachedState, revision: Revision, observed: Observed, *, replicas: int
) -> list[str]:
    """The chosen nodes that need a pre-warm pod for a version, until that many of its servers are ready."""
    # Servers on nodes that are being drained need replacements, ready as they are.
    wanted, usable = {names.REVISION: revision.id}, set(state.eligible)
    servers = [pod for pod in serving_pods(observed) if has_labels(pod, wanted)]
    staying = [pod for pod in servers if is_ready(pod) and node_of(pod) in usable]
    if replicas > 0 and len(staying) >= replicas * revision.nodes:
        return []
    # A node whose server has mounted the model needs no pre-warm pod: the server's volume is the lease.
    held = state.labelled | {node_of(pod) for pod in servers if is_mounted(pod)}
    return [name for name in state.chosen if name not in held]


def _nodes_with(pods: list[Json], revision: Revision) -> set[str]:
    """Nodes where pods of a version have their volumes mounted."""
    return _nodes_of(_mounted(pods, revision))


def _mounted(pods: list[Json], revision: Revision) -> list[Json]:
    wanted = {names.REVISION: revision.id}
    return [pod for pod in pods if has_labels(pod, wanted) and is_mounted(pod)]


def _nodes_of(pods: list[Json]) -> set[str]:
    return {name for pod in pods if (name := node_of(pod)) is not None}


def serving_pods(observed: Observed, *, ended: bool = False) -> list[Json]:
    """The pods that serve: servers, and the workers of those that span nodes. `ended`: those that did."""
    return [
        pod for role in (names.SERVER, names.WORKER) for pod in observed.pods(role, ended=ended)
    ]


def server_count(observed: Observed, revision: Revision | None = None) -> tuple[int, int]:
    """The number of the Workspace's servers and of the ready ones; of one version, if given."""
    pods = [
        pod
        for pod in observed.pods(names.SERVER)
        if revision is None or has_labels(pod, {names.REVISION: revision.id})
    ]
    return len(pods), sum(map(is_ready, pods))
