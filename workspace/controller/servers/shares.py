"""How the servers of one version are divided between two Deployments: those that never run on spot, and the rest. Pure.

`capacity.onDemandMinimum` needs two: the pods of one Deployment are all alike, so a scheduler could place any number of
them on spot nodes. Either may lose servers at any time, so neither gives up servers that stand in for the other's.
"""

from __future__ import annotations

from dataclasses import dataclass

from workspace.controller.observation.cluster_state import CachedState
from workspace.controller.observation.revisions import Revision
from workspace.node_demands import on_demand_share, takes_both
from workspace.schema import Workspace


@dataclass(frozen=True, slots=True)
class Shares:
    """Numbers of servers: of those that run on any capacity, and of those that never run on spot."""

    rest: int = 0
    on_demand: int = 0

    @property
    def total(self) -> int:
        return self.rest + self.on_demand

    def at_most(self, total: int) -> Shares:
        """Of these so many, those first that never run on spot."""
        on_demand = min(self.on_demand, total)
        return Shares(min(self.rest, total - on_demand), on_demand)


def floor(workspace: Workspace, revision: Revision, replicas: int) -> int:
    """How many of a version's replicas must not run on spot, as the Workspace's spec says now.

    A version that demands one kind of capacity, such as that before an edit, has none to divide.
    """
    if not takes_both(revision.resources.provisioning):
        return 0
    return on_demand_share(workspace.spec.resources.provisioning, replicas)


def divided(replicas: int, on_demand: int) -> Shares:
    """Some replicas, of which so many never run on spot."""
    return Shares(replicas - on_demand, on_demand)


def startable(state: CachedState, wanted: Shares, running: Shares) -> Shares:
    """The servers that may run now, by the nodes that hold their model."""
    if state.parts is None:
        count = state.startable(wanted.total, running.total)
        return divided(count, min(wanted.on_demand, count))
    rest, beside = state.parts
    return Shares(
        rest.startable(wanted.rest, running.rest),
        beside.startable(wanted.on_demand, running.on_demand),
    )


def moved(wanted: Shares, asked: Shares, ready: Shares, *, total: int) -> Shares:
    """The servers to ask for on the way from those `asked` to those `wanted`, of `total` in the end.

    Law: no server goes that a ready one of the other Deployment doesn't make up for, unless there are more than the
    total.
    """
    return Shares(
        max(wanted.rest, min(asked.rest, total - ready.on_demand)),
        max(wanted.on_demand, min(asked.on_demand, total - ready.rest)),
    )
