"""The Node's condition `cache.weightyard.dev/PinnedReady`: whether the models pinned to it are verified there. Pure.

For those who keep pods off a node by its conditions, such as the Node Readiness Controller. By the same decider as the
startup taint; unlike that it follows what is pinned later, and a silent agent makes it Unknown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cache_agent.api.cached_model import CachedModel
from cache_agent.api.heartbeat import is_silent
from cache_agent.api.node_cache import NodeCache
from cache_agent.api.node_reasons import NodeReason
from cache_agent.api.shared_names import CACHE_DOMAIN
from workspace.controller.observation.node_labels import missing_pinned
from workspace.controller.observation.objects import condition

Json = dict[str, Any]

TYPE: Final = f"{CACHE_DOMAIN}/PinnedReady"
# A field manager of its own: applied without the condition, the condition goes, and nothing else.
MANAGER: Final = "weightyard-node-condition"
_NAMED: Final = 5  # models


@dataclass(frozen=True, slots=True)
class NodeCondition:
    """The condition of a Node. `since`: when `status` last changed, RFC 3339; not compared."""

    status: str
    reason: str
    message: str
    since: str = field(default="", compare=False)

    @classmethod
    def from_document(cls, node: Json) -> NodeCondition | None:
        """The condition that a Node has; None without it."""
        found = condition(node, TYPE)
        if not found:
            return None
        said = ("status", "reason", "message", "lastTransitionTime")
        return cls(*(str(found.get(name) or "") for name in said))


def wanted_condition(
    cache: NodeCache | None, models: Iterable[CachedModel], labels: Mapping[str, str]
) -> NodeCondition | None:
    """The condition that a node should have; None without an agent, which says nothing of it."""
    if cache is None:
        return None
    if is_silent(cache):
        return NodeCondition(
            "Unknown", NodeReason.NO_HEARTBEAT.value, "The agent of this node is silent."
        )
    missing = missing_pinned(cache, models, labels)
    if missing is None:
        return NodeCondition(
            "False", NodeReason.NOT_SYNCED.value, "The agent isn't ready. See its NodeCache."
        )
    if missing:
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        said = f"Not verified here yet: {', '.join(missing[:_NAMED])}{more}."
        return NodeCondition("False", NodeReason.MISSING.value, said)
    return NodeCondition(
        "True", NodeReason.HELD.value, "The models pinned to this node are verified."
    )


def to_apply(
    name: str, wanted: NodeCondition | None, before: NodeCondition | None, now: str
) -> Json:
    """The document that gives a Node its condition, or takes it away."""
    document: Json = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "status": {}}
    if wanted is not None:
        same = before is not None and before.status == wanted.status
        document["status"]["conditions"] = [
            {
                "type": TYPE, "status": wanted.status, "reason": wanted.reason, "message": wanted.message,
                # Kubernetes' rule for conditions: this time changes with the status alone.
                "lastTransitionTime": (before.since if same and before else "") or now,
            }
        ]  # fmt: skip
    return document
