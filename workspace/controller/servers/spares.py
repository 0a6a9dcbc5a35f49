"""Warm spares: nodes that hold a Workspace's model beside those that serve it, for the servers that come next. Pure.

They are of the version that serves, so that no more nodes hold models than replicas and spares while another rolls out.
A pre-warm pod stays on each: without its lease, a model that nobody uses would be the next to be evicted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from workspace.controller.observation.cluster_state import CachedState, serving_pods
from workspace.controller.observation.nodes import choose_warm
from workspace.controller.observation.objects import nodes_of
from workspace.controller.observation.observed import Observed
from workspace.controller.observation.revisions import Revision
from workspace.controller.reasons import Reason
from workspace.render import names
from workspace.render.spare_nodes import API, KIND, spare_nodes
from workspace.schema import Workspace

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Spares:
    """The nodes that are a version's spares, those of them that hold it, and how many the spec asks for.

    `missing_kind`: the cluster has no CapacityBuffers.
    """

    version: Revision | None = None
    asked: int = 0
    nodes: tuple[str, ...] = ()
    warm: frozenset[str] = frozenset()
    missing_kind: bool = False

    @property
    def places(self) -> list[tuple[Revision, str]]:
        """Where a pre-warm pod of which version stays."""
        return [] if self.version is None else [(self.version, node) for node in self.nodes]

    @property
    def problem(self) -> tuple[Reason, str] | None:
        """What spares lack, as a reason and a sentence; None if all of them hold the model."""
        if self.asked <= len(self.warm):
            return None
        held = f"{len(self.warm)} of {self.asked} warm spares hold it"
        if self.missing_kind and len(self.nodes) < self.asked:
            return (
                Reason.CAPACITY_BUFFER_MISSING,
                f"{held}: {len(self.nodes)} more nodes fit, and the cluster has no {KIND} ({API}), by which others "
                "would be made. Turn it on in your autoscaler, or add nodes.",
            )
        if len(self.nodes) < self.asked:
            return Reason.SPARES_MISSING, f"{held}: {len(self.nodes)} more nodes fit until now."
        return (
            Reason.SPARES_MISSING,
            f"{held}: it is being fetched on {', '.join(sorted({*self.nodes} - self.warm)[:5])}.",
        )

    def objects(self, workspace: Workspace) -> list[Json]:
        """The objects that have nodes made for spares, where the cluster has such a kind."""
        if self.missing_kind or self.version is None:
            return []
        return spare_nodes(workspace, self.version.template, gpus=self.version.node_gpus)


def spares_of(
    workspace: Workspace, observed: Observed, version: Revision | None,
    state_of: Callable[[Revision], CachedState], *, goal: int,
) -> Spares:  # fmt: skip
    """The spares of the version that serves; none while the Workspace is stopped for good.

    They are among the nodes that could run a server and weren't chosen for one: first those that hold the model, then
    those that are getting it, then those without any Workspace's server, whose GPUs are free.
    """
    asked = workspace.spec.resources.warm_spares
    if version is None or not asked or (not goal and workspace.spec.scale is None):
        return Spares()
    state = state_of(version)
    free = {*state.eligible} - {*state.chosen} - nodes_of(serving_pods(observed))
    warming = nodes_of(observed.pods(names.PREWARM))
    chosen = choose_warm(
        [node for node in observed.nodes if node.name in free],
        asked,
        label=names.node_label(version.key),
        preference=({*state.warm}, warming, free - observed.occupied),
    )
    found = tuple(node.name for node in chosen)
    missing = API.partition("/")[0] not in observed.groups
    return Spares(version, asked, found, state.warm.intersection(found), missing)
