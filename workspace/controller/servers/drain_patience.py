"""How long a drain is held up for servers that are to replace others, when something keeps them from running. Pure.

A budget that waits for a server that never comes keeps its node for good: a new version that crashes, a quota that
admits none, capacity that can't be had. What is wrong may pass, so replacements get some time, counted from their
creation, which the API server keeps.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from workspace.controller.observation.objects import node_of
from workspace.controller.observation.observed import Observed
from workspace.controller.observation.pod_problems import worst_problem
from workspace.controller.observation.pod_start import seconds_since

Json = dict[str, Any]

# Longer than a new node, its model and a start take where all is well, and than a retry after a failure.
PATIENCE: Final = 600.0  # seconds


def patience(
    replacements: Iterable[Json],
    observed: Observed,
    *,
    deployments: Iterable[str],
    makes_nodes: bool,
) -> float | None:
    """Seconds for which drains may still wait for these servers; 0 when no longer, None while nothing is wrong.

    `deployments` are the names of what makes them. `makes_nodes`: something is known to make nodes for those that have
    none. Otherwise none is waited for.
    """
    found = (observed.find("Deployment", name) for name in deployments)
    # What a Deployment itself can't create, such as under a quota, doesn't come by waiting.
    if any(worst_problem((), each) is not None for each in found):
        return 0.0
    left = [
        _left(pod, observed, makes_nodes=makes_nodes)
        for pod in replacements
        if worst_problem([pod], mounts=observed.mounts) is not None
    ]
    return min(left, default=None)


def _left(pod: Json, observed: Observed, *, makes_nodes: bool) -> float:
    if node_of(pod) is None and not makes_nodes:
        return 0.0
    waited = seconds_since(str(pod["metadata"].get("creationTimestamp")), observed.now)
    return max(0.0, PATIENCE - waited)
