"""Caches CachedModels, NodeCaches and nodes, and computes which keys a change affects. Pure values.

Changes of a node's report that need an immediate write (a state, a failure) are separated from mere progress.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from cache_agent.api.cached_model import CachedModel
from cache_agent.api.heartbeat import is_silent
from cache_agent.api.node_cache import DesiredModelStatus, NodeCache
from cache_agent.api.shared_names import MODEL_LABELS
from modelimage.errors import InvalidInput
from modelimage.reference import parse_image
from workspace.controller.observation import node_labels
from workspace.controller.observation.node_condition import NodeCondition
from workspace.controller.observation.node_labels import NodeLabels
from workspace.controller.reasons import Reason
from workspace.sources import require_registry

Json = dict[str, Any]
Key = tuple[str, str]  # a kind and a name
MODEL, CACHE, NODE = "CachedModel", "NodeCache", "Node"


@dataclass(frozen=True, slots=True)
class ParsedModel:
    """A CachedModel: parsed, or its parse error; with its generation and its current status."""

    model: CachedModel | InvalidInput
    uid: str
    generation: int
    status: Json


@dataclass(frozen=True, slots=True)
class NodeView:
    """The facts read from a Node."""

    labels: dict[str, str]
    marks: NodeLabels
    condition: NodeCondition | None = None


@dataclass(frozen=True, slots=True)
class CacheView:
    """A NodeCache, and its reports by CachedModel."""

    cache: NodeCache
    reports: dict[str, DesiredModelStatus]


@dataclass
class ClusterView:
    """All watched objects. `put` returns the affected keys: those to handle immediately, and those that may wait.

    `conditions`: nodes get a condition, which follows what is pinned for as long as they are there.
    """

    models: dict[str, ParsedModel] = field(default_factory=dict)
    caches: dict[str, CacheView] = field(default_factory=dict)
    nodes: dict[str, NodeView] = field(default_factory=dict)
    conditions: bool = False

    def put(self, document: Json) -> tuple[set[Key], set[Key]]:
        """Stores the newest state of an object."""
        kind, name = document["kind"], document["metadata"]["name"]
        if kind == MODEL:
            return self._put_model(name, _known(document)), set()
        if kind == NODE:
            return self._put_node(name, _node(document)), set()
        return self._put_cache(name, document)

    def drop(self, document: Json) -> set[Key]:
        """Removes a deleted object; returns the keys to handle immediately."""
        kind, name = document["kind"], document["metadata"]["name"]
        if kind == MODEL:
            # The model that is gone may be the last for which nodes with the startup taint wait.
            return self._starting_nodes() if self.models.pop(name, None) else set()
        if kind == NODE:
            self.nodes.pop(name, None)
            return self._all_models()
        self.caches.pop(name, None)
        return {(NODE, name), *self._all_models()}

    def known(self, kind: str) -> dict[Key, Json]:
        """The cached objects of a kind, with only the fields that `drop` needs."""
        held: dict[str, Iterable[str]] = {
            MODEL: self.models, CACHE: self.caches, NODE: self.nodes,
        }  # fmt: skip
        return {("", name): {"kind": kind, "metadata": {"name": name}} for name in held[kind]}

    def entries(self, model: CachedModel) -> dict[str, DesiredModelStatus | None]:
        """The report of a model from each node that should hold it; None where there is none yet."""
        return {
            name: _silent_report(model) if is_silent(view.cache) else view.reports.get(model.name)
            for name, view in self.caches.items()
            if name in self.nodes and model.selects(self.nodes[name].labels)
        }

    def readable_models(self) -> list[CachedModel]:
        return [k.model for k in self.models.values() if isinstance(k.model, CachedModel)]

    def _put_model(self, name: str, known: ParsedModel) -> set[Key]:
        before = self.models.get(name)
        self.models[name] = known
        if before == known:
            return set()
        # A changed spec can change which nodes have started. A status write, often our own, can't.
        is_same_spec = before is not None and before.generation == known.generation
        return {(MODEL, name)} | (set() if is_same_spec else self._starting_nodes())

    def _put_node(self, name: str, view: NodeView) -> set[Key]:
        before = self.nodes.get(name)
        self.nodes[name] = view
        if before == view:
            return set()
        # Our own labels are excluded, or every label we write would requeue all models.
        relabelled = before is None or _own(before.labels) != _own(view.labels)
        return {(NODE, name)} | (self._all_models() if relabelled else set())

    def _put_cache(self, name: str, document: Json) -> tuple[set[Key], set[Key]]:
        cache = node_labels.parse_node_cache(document)
        if cache is None:
            return set(), set()
        view = CacheView(cache, {each.name: each for each in cache.status.desired})
        before = self.caches.get(name)
        self.caches[name] = view
        if before is None:
            return {(NODE, name), *self._all_models()}, set()
        now: set[Key] = set() if _marks_agree(before.cache, cache) else {(NODE, name)}
        # What counts for every model on this node changes with that, and not only what its report has.
        if is_silent(before.cache) != is_silent(cache):
            now |= self._all_models()
        later: set[Key] = set()
        for each in {*before.reports, *view.reports}:
            old, new = before.reports.get(each), view.reports.get(each)
            # A state lets pods start, so it counts at once. Progress may wait, or downloads would keep the API busy.
            if old != new:
                (now if _state(old) != _state(new) else later).add((MODEL, each))
        return now, later

    def _all_models(self) -> set[Key]:
        return {(MODEL, name) for name in self.models}

    def _starting_nodes(self) -> set[Key]:
        return {
            (NODE, name)
            for name, view in self.nodes.items()
            if self.conditions or view.marks.starting
        }


def _known(document: Json) -> ParsedModel:
    metadata = document["metadata"]
    model: CachedModel | InvalidInput
    try:
        # A status that another version wrote must not make the spec unreadable.
        model = CachedModel.parse({**document, "status": {}})
        require_registry(parse_image(model.spec.image))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        model = InvalidInput(f"{where}: {first['msg']}", hint="Correct the CachedModel.")
    except InvalidInput as error:
        model = error
    return ParsedModel(
        model=model,
        uid=str(metadata.get("uid", "")),
        generation=int(metadata.get("generation", 1)),
        status=document.get("status") or {},
    )


def _node(document: Json) -> NodeView:
    return NodeView(
        dict(document["metadata"].get("labels") or {}),
        NodeLabels.from_document(document),
        NodeCondition.from_document(document),
    )


def _silent_report(model: CachedModel) -> DesiredModelStatus:
    """What counts instead of a silent agent's last report, which may no longer be true."""
    return DesiredModelStatus(
        name=model.name,
        observed_generation=model.metadata.generation,
        state="Failed",
        reason=Reason.NO_HEARTBEAT,
        message="the agent of this node is silent; see its pod and its node",
    )


def _own(labels: dict[str, str]) -> dict[str, str]:
    """A node's labels without those that this controller writes."""
    return {k: v for k, v in labels.items() if not k.startswith(MODEL_LABELS)}


def _marks_agree(before: NodeCache, after: NodeCache) -> bool:
    def relevant(cache: NodeCache) -> object:
        states = [(c.type, c.status) for c in cache.status.conditions]
        reports = [(w.name, w.state, w.observed_generation) for w in cache.status.desired]
        return states, reports, node_labels.held_labels(cache)

    return relevant(before) == relevant(after)


def _state(entry: DesiredModelStatus | None) -> object:
    """The part of a report whose change is passed on immediately."""
    if entry is None:
        return None
    return (
        entry.uid,
        entry.observed_generation,
        entry.state,
        entry.reason,
        entry.runtime_image,
        entry.model_key,
    )
