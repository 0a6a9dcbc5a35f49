"""Computes this node's desired state: the CachedModels whose selector matches the node's current labels."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import ValidationError

from cache_agent.api.cached_model import PLURAL, CachedModel
from cache_agent.api.kube_objects import API_VERSION
from cache_agent.node.desired_detail import RefusedDocument
from cache_agent.prewarm.documents import explain, refuse
from cache_agent.prewarm.values import DesiredModel
from modelimage.errors import NotFound, WeightyardError

Json = dict[str, Any]

MODELS_PATH: Final = f"/apis/{API_VERSION}/{PLURAL}"
NODES_PATH: Final = "/api/v1/nodes"


@dataclass
class NodeLabels:
    """The labels of this node's Node object; `current` is None until it was listed. Belongs to one event loop.

    `changed` is called with the labels whenever they change.
    """

    changed: Callable[[Mapping[str, str]], None] = lambda labels: None
    current: dict[str, str] | None = None

    def __post_init__(self) -> None:
        self._arrived = asyncio.Event()

    def put(self, labels: Mapping[str, str]) -> bool:
        """Replace the labels. Returns whether they differ."""
        if labels == self.current:
            return False
        self.current = dict(labels)
        self._arrived.set()
        self.changed(self.current)
        return True

    async def gone(self, label: str) -> None:
        """Wait until the node lacks a label. While the labels are unknown the label counts as present."""
        while self.current is None or label in self.current:
            self._arrived.clear()
            await self._arrived.wait()


@dataclass
class ClusterSource:
    """Joins the events of two followers. Calls `want` once models and node are both known, and after every change."""

    want: Callable[[Sequence[DesiredModel], Sequence[RefusedDocument]], None]
    trouble: Callable[[str], None]
    labels: NodeLabels
    # Called when all models are listed another time.
    relisted: Callable[[], None] = lambda: None
    # With the desired model made from each, so that one change doesn't convert all of them again.
    _models: dict[str, tuple[CachedModel, DesiredModel]] | None = None
    _refused: dict[str, RefusedDocument] = field(default_factory=dict)
    # By follower, because one may fail while the other works.
    _troubles: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.models = ModelListener(self)
        self.node = NodeListener(self)

    def put_models(self, documents: Sequence[Json], *, replace: bool = False) -> None:
        """Add new or changed documents. `replace`: they take the place of all earlier ones."""
        if replace or self._models is None:
            if self._models is not None:
                self.relisted()
            self._models, self._refused = {}, {}
            changed = True
        else:
            changed = False
        for document in documents:
            changed |= self._put(self._models, document)
        if changed:
            self._notify()

    def drop_model(self, name: str) -> None:
        model = (self._models or {}).pop(name, None)
        if self._refused.pop(name, None) is not None or model is not None:
            self._notify()

    def put_labels(self, labels: Mapping[str, str]) -> None:
        if self.labels.put(labels):
            self._notify()

    def note_trouble(self, what: str, error: WeightyardError | None) -> None:
        """Set or, with None, clear the error of one of the followers."""
        if error is None:
            self._troubles.pop(what, None)
        else:
            self._troubles[what] = error.message
        self.trouble("; ".join(self._troubles.values()))

    def note_missing_node(self, *, missing: bool) -> None:
        """Set or clear the problem that the API server has no Node of this name."""
        # Reported as trouble, because the labels of a missing node will never arrive.
        problem = NotFound("the API server has no Node of this agent's name; set NODE_NAME")
        self.note_trouble("name", problem if missing else None)

    def _put(self, models: dict[str, tuple[CachedModel, DesiredModel]], document: Json) -> bool:
        """Add one document. Returns False if its spec is unchanged, as in most events, which change only the status."""
        metadata = document["metadata"]
        name = metadata["name"]
        old = models[name][0] if name in models else None
        # An object that waits for its finalizers is no longer desired.
        if metadata.get("deletionTimestamp"):
            was_refused = self._refused.pop(name, None) is not None
            return models.pop(name, None) is not None or was_refused
        # The API server raises the generation only when the spec changes; 0 means that it set none.
        same = (metadata.get("uid", ""), metadata.get("generation", 0))
        if old is not None and (old.metadata.uid, old.metadata.generation) == same and same[1]:
            return False
        # Without the status, which agents don't use: an odd one must not make the object invalid.
        whole = {"apiVersion": API_VERSION, "kind": "CachedModel", **document, "status": {}}
        try:
            model = CachedModel.parse(whole)
            models[name] = (model, DesiredModel.from_cached_model(model))
        except ValidationError as error:
            was = models.pop(name, None), self._refused.get(name)
            self._refused[name] = refuse(document, explain(error), where=name)
            return was != (None, self._refused[name])
        else:
            self._refused.pop(name, None)
        return True

    def _notify(self) -> None:
        # While the labels are unknown, models with a node selector would seem unwanted and lose their pins.
        labels = self.labels.current
        if self._models is None or labels is None:
            return
        desired_models = [
            desired for model, desired in self._models.values() if model.selects(labels)
        ]
        self.want(desired_models, sorted(self._refused.values()))


@dataclass(frozen=True, slots=True)
class ModelListener:
    """Passes events of CachedModels to a `ClusterSource`."""

    wanted: ClusterSource

    def replace(self, documents: list[Json]) -> None:
        self.wanted.put_models(documents, replace=True)

    def put(self, document: Json) -> None:
        self.wanted.put_models([document])

    def drop(self, document: Json) -> None:
        self.wanted.drop_model(document["metadata"]["name"])

    def trouble(self, error: WeightyardError | None) -> None:
        self.wanted.note_trouble("models", error)


@dataclass(frozen=True, slots=True)
class NodeListener:
    """Passes this node's labels to a `ClusterSource`. After the Node is deleted its last labels stay in force."""

    wanted: ClusterSource

    def replace(self, documents: list[Json]) -> None:
        for document in documents:
            self.put(document)
        self.wanted.note_missing_node(missing=not documents)

    def put(self, document: Json) -> None:
        self.wanted.put_labels(document["metadata"].get("labels") or {})

    def drop(self, document: Json) -> None:
        """Do nothing: the agent's pod is deleted along with its Node."""

    def trouble(self, error: WeightyardError | None) -> None:
        self.wanted.note_trouble("node", error)
