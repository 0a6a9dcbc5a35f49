"""Node labels for held models, and the startup taint that keeps pods away until pinned models are ready.

Pure. Labels follow the NodeCache: before an agent releases a model, its label is removed, and the agent waits for that
before deleting. An annotation with the label's name has the model's full identity.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import ValidationError

from cache_agent.api.cached_model import CachedModel
from cache_agent.api.node_cache import NodeCache
from cache_agent.api.shared_names import MODEL_LABELS, READY, STARTUP_TAINT, node_label
from modelimage.digest import Digest
from modelimage.errors import InvalidInput

Json = dict[str, Any]

_ALL_TRUE: Final = ("Ready", "Synced", "PinnedReady")


@dataclass(frozen=True, slots=True)
class NodeLabels:
    """A node's model labels and annotations by name, and whether it has the startup taint."""

    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    starting: bool = False

    @classmethod
    def from_document(cls, node: Json) -> NodeLabels:
        """The labels, annotations and taint of a Node."""
        metadata, spec = node["metadata"], node.get("spec") or {}
        return cls(
            labels=_models(metadata.get("labels")),
            annotations=_models(metadata.get("annotations")),
            starting=any(each.get("key") == STARTUP_TAINT for each in spec.get("taints") or ()),
        )


def parse_node_cache(document: Json) -> NodeCache | None:
    """Parses a NodeCache. None for an invalid one, from an agent of another version; its node's cached state stays."""
    try:
        return NodeCache.model_validate(document)
    except ValidationError:
        return None


def held_labels(cache: NodeCache) -> dict[str, str]:
    """The labels for a NodeCache, with each model's full identity; none while its agent isn't ready or is silent."""
    # A node with a damaged store, or without a living agent, must not attract pods: their volumes would fail.
    if _condition(cache, "Ready") != "True":
        return {}
    found = {}
    for model in cache.status.models:
        key = _digest(model.key)
        if model.state == "Ready" and key is not None:
            found[node_label(key)] = f"{key} {model.variant} {model.image}"
    return found


def wanted_marks(
    cache: NodeCache | None, models: Iterable[CachedModel], labels: Mapping[str, str]
) -> NodeLabels:
    """The desired labels of a node. Without a NodeCache it holds nothing and hasn't started."""
    if cache is None:
        return NodeLabels(starting=True)
    named = held_labels(cache)
    return NodeLabels(dict.fromkeys(named, READY), named, not has_started(cache, models, labels))


def has_started(cache: NodeCache, models: Iterable[CachedModel], labels: Mapping[str, str]) -> bool:
    """Whether every pinned model that selects the node is held and verified at the model's current generation."""
    return missing_pinned(cache, models, labels) == []


def missing_pinned(
    cache: NodeCache, models: Iterable[CachedModel], labels: Mapping[str, str]
) -> list[str] | None:
    """The pinned models that select the node and aren't verified there; None while its agent can't say it."""
    reports = {each.name: each for each in cache.status.desired}
    pinned = [each for each in models if each.spec.pin and each.selects(dict(labels))]
    missing = [
        each.name
        for each in pinned
        if (report := reports.get(each.name)) is None
        or report.state != "Ready"
        or report.observed_generation < each.metadata.generation
    ]
    # Synced is required: until the agent has the current desired state, its reports may omit a
    # model.
    if any(_condition(cache, each) != "True" for each in _ALL_TRUE):
        # With a pinned model missing the agent's own PinnedReady isn't True,
        # which is knowledge and not ignorance.
        return missing if missing and _condition(cache, "Synced") == "True" else None
    return missing


def patch(there: NodeLabels, wanted: NodeLabels) -> Json | None:
    """A merge patch of a node's labels and annotations, without the taint; None when nothing differs."""
    parts = {
        name: changed
        for name, old, new in (
            ("labels", there.labels, wanted.labels),
            ("annotations", there.annotations, wanted.annotations),
        )
        if (changed := _difference(old, new))
    }
    return {"metadata": parts} if parts else None


def without_taint(node: Json) -> Json | None:
    """A merge patch that removes the startup taint from the node as it was read; None without the taint."""
    taints = (node.get("spec") or {}).get("taints") or []
    kept = [each for each in taints if each.get("key") != STARTUP_TAINT]
    if len(kept) == len(taints):
        return None
    # Merge patches replace lists whole: the resourceVersion keeps taints that others add meanwhile.
    version = node["metadata"]["resourceVersion"]
    return {"metadata": {"resourceVersion": version}, "spec": {"taints": kept or None}}


def _difference(old: Mapping[str, str], new: Mapping[str, str]) -> dict[str, str | None]:
    gone: dict[str, str | None] = {name: None for name in old if name not in new}
    return gone | {name: value for name, value in new.items() if old.get(name) != value}


def _models(named: Mapping[str, str] | None) -> dict[str, str]:
    return {k: v for k, v in (named or {}).items() if k.startswith(MODEL_LABELS)}


def _condition(cache: NodeCache, kind: str) -> str:
    found = (each.status for each in cache.status.conditions if each.type == kind)
    return next(found, "Unknown")


def _digest(text: str) -> Digest | None:
    """The parsed model key; None for another format, from an agent of another version: the model gets no label."""
    try:
        return Digest.parse(text)
    except InvalidInput:
        return None
