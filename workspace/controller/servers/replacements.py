"""Servers on nodes that go, and those that are to replace them. Pure.

A server on such a node doesn't count: one more is asked for at once, before anything evicts it. When as many are ready
as are wanted elsewhere, the surge ends, and by the pods' deletion costs the leaving ones stop first. Where the
node ends within a notice there is no time for that: its servers are deleted, which takes them out of routing and lets
them finish their requests, and their Deployment replaces them in the same moment.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from workspace.controller.observation.node_signs import Departure, lasting
from workspace.controller.observation.nodes import KubeNode, tolerates_all
from workspace.controller.observation.objects import group_of, is_ready, node_of
from workspace.controller.observation.observed import Delete, Reference
from workspace.render.pod import tolerations
from workspace.schema import Resources

Json = dict[str, Any]

_MOST_MOVED: Final = 0.25  # of the wanted servers, at a time


@dataclass(frozen=True, slots=True)
class Departures:
    """The names of nodes that go: all of them, and those that end within a notice, whatever runs there."""

    leaving: frozenset[str] = frozenset()
    interrupted: frozenset[str] = frozenset()

    def takes(self, pod: Json) -> bool:
        """Whether a pod's node goes."""
        return node_of(pod) in self.leaving

    def drains(self, pod: Json) -> bool:
        """Whether a pod's node goes, and waits for the pod."""
        return self.takes(pod) and not self.interrupts(pod)

    def interrupts(self, pod: Json) -> bool:
        """Whether a pod's node ends within a notice."""
        return node_of(pod) in self.interrupted


def departures(nodes: Iterable[KubeNode], resources: Resources, *, gpus: int) -> Departures:
    """The nodes that go, for replicas with these resources.

    Also those that are ready and have got a taint that they don't tolerate, from somebody who isn't known here. What a
    node lacks in labels or GPUs is no such sign: a device plugin that starts again has none for a moment. Replicas that
    tolerate whatever a node goes by stay: the scheduler would put their replacements there too.
    """
    accepted = tolerations(resources, gpus=gpus)
    leaving, ending = set(), set()
    for node in nodes:
        stays = not node.deleted and tolerates_all(accepted, node.taints)
        if node.departure is not Departure.NONE and not stays:
            leaving.add(node.name)
            if node.departure is Departure.INTERRUPTED:
                ending.add(node.name)
        # Of a node that isn't ready Kubernetes itself evicts the pods, after the
        # time for which they tolerate that.
        elif node.ready and not tolerates_all(accepted, lasting(node.taints)):
            leaving.add(node.name)
    return Departures(leaving=frozenset(leaving), interrupted=frozenset(ending))


def surge(servers: Sequence[Json], gone: Departures, *, wanted: int, marked: bool = True) -> int:
    """How many more servers than `wanted` a Deployment with these is to have.

    Law: one for each server that a drain moves, but a quarter of those wanted at most, as a whole pool of nodes may be
    drained at once; none once as many as these can be given up. While some of the others aren't ready none can: the
    first to be deleted would be those that are starting; and none before the leaving ones are `marked` as those that go
    first.
    """
    leaving = sum(map(gone.drains, servers))
    staying = sum(is_ready(pod) and not gone.takes(pod) for pod in servers)
    step = min(leaving, max(1, int(wanted * _MOST_MOVED)))
    is_enough = staying + leaving - step >= wanted and marked
    return step if wanted and not is_enough else 0


def least_ready(
    servers: Sequence[Json], gone: Departures, *, wanted: int, replaceable: bool
) -> int | None:
    """How many servers evictions must leave ready; None while no drain moves any.

    Law: all that are wanted; where no replacements come, one may go at a time.
    """
    if not any(map(gone.drains, servers)):
        return None
    return wanted if replaceable else max(0, wanted - 1)


def interrupted(
    servers: Iterable[Json], gone: Departures, workers: Iterable[Json] = ()
) -> list[Delete]:
    """The servers to delete: no budget holds that up, and no drain of the node's owner is waited for.

    A server on several nodes goes with any of its `workers`; its leader's end lets it finish its requests.
    """
    # Servers on their own have no group in common.
    broken = {group_of(pod) for pod in workers if gone.interrupts(pod)} - {None}
    return [
        Delete(Reference("Pod", str(pod["metadata"]["name"])), str(pod["metadata"]["uid"]))
        for pod in servers
        if gone.interrupts(pod) or group_of(pod) in broken
    ]
