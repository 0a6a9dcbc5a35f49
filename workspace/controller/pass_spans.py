"""The spans of passes over Workspaces: one for a pass that writes, with children for what it does.

They are part of the trace of the version that is worked on, as are the agents' volumes and the servers' starts. A pass
that changes nothing has none: there are thousands.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from modelimage.spans import span
from modelimage.trace_headers import SpanOrigin
from workspace.controller.cluster.object_cache import Key
from workspace.controller.observation.observed import Action, Apply, Decision, Delete
from workspace.render import names
from workspace.rollout_status import RolloutStatus

Json = dict[str, Any]


def reconciling(key: Key, decision: Decision, began: int) -> AbstractContextManager[None]:
    """The span of a pass over a Workspace. `began`: in nanoseconds since the epoch."""
    if not decision.actions:
        return nullcontext()
    origin = SpanOrigin(decision.trace, began=began)
    return span("reconcile", origin, workspace="/".join(key), writes=len(decision.actions))


def acting(action: Action) -> AbstractContextManager[None]:
    """The span of one write."""
    if not isinstance(action, Apply):
        verb = "delete" if isinstance(action, Delete) else "annotate"
        return span(f"{verb} {action.reference.kind}", object=action.reference.name)
    document = action.document
    kind, metadata = document["kind"], document["metadata"]
    if kind == "Pod" and (metadata.get("labels") or {}).get(names.ROLE) == names.PREWARM:
        return span("pre-warm", object=metadata["name"], node=_node(document))
    return span(f"apply {kind}", object=metadata["name"])


def tell_step(before: RolloutStatus | None, now: RolloutStatus | None, trace: str) -> None:
    """Record that a rollout went on to another step or phase."""
    # Not the whole status: messages and measures change within a step, once for each comparison.
    if now is None or (before and (before.version, before.phase, before.step)) == (
        now.version, now.phase, now.step,
    ):  # fmt: skip
        return
    with span(
        "rollout step", SpanOrigin(trace), version=now.version, phase=now.phase.value, step=now.step, weight=now.weight,
    ):  # fmt: skip
        pass


def _node(pod: Json) -> str:
    """The node that a pre-warm pod is made for."""
    # A pre-warm pod isn't placed yet, so it has no `spec.nodeName`: its affinity names the node.
    terms = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]  # fmt: skip
    return str(terms["nodeSelectorTerms"][0]["matchFields"][0]["values"][0])
