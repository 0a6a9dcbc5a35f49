"""What is wanted of this node, from the API server: the CachedModels that select it, by the labels that it has now."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import ValidationError

from cache_agent.api.cached_model import PLURAL, CachedModel
from cache_agent.api.document import API_VERSION
from cache_agent.prewarm.documents import explain
from cache_agent.prewarm.values import DesiredModel
from modelimage.errors import NotFound, WeightyardError

Json = dict[str, Any]

MODELS_PATH: Final = f"/apis/{API_VERSION}/{PLURAL}"
NODES_PATH: Final = "/api/v1/nodes"


@dataclass
class ClusterWanted:
    """Told by two followers; tells `want` once both the models and the node are known, and at every change after.

    `labelled` is told the node's labels whenever they change.
    """

    want: Callable[[Sequence[DesiredModel], Sequence[str]], None]
    trouble: Callable[[str], None]
    labelled: Callable[[Mapping[str, str]], None] = lambda labels: None
    _labels: dict[str, str] | None = None
    # Each with the wish that it makes, so that a change of one costs nothing for the others.
    _models: dict[str, tuple[CachedModel, DesiredModel]] | None = None
    _problems: dict[str, str] = field(default_factory=dict)
    _troubles: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._relabelled = asyncio.Event()
        self.models = ModelListener(self)
        self.node = NodeListener(self)

    async def label_gone(self, label: str) -> None:
        """Wait until the node has no such label. What isn't known counts as there."""
        while self._labels is None or label in self._labels:
            self._relabelled.clear()
            await self._relabelled.wait()

    def put_models(self, documents: Sequence[Json], *, anew: bool = False) -> None:
        """New or changed documents; `anew`: they are all there are."""
        if anew or self._models is None:
            self._models, self._problems = {}, {}
            changed = True
        else:
            changed = False
        for document in documents:
            changed |= self._put(self._models, document)
        if changed:
            self._tell()

    def drop_model(self, name: str) -> None:
        if self._models is not None and self._models.pop(name, None) is not None:
            self._tell()
        self._problems.pop(name, None)

    def put_labels(self, labels: Mapping[str, str]) -> None:
        if labels != self._labels:
            self._labels = dict(labels)
            self._relabelled.set()
            self.labelled(self._labels)
            self._tell()

    def note_trouble(self, what: str, error: WeightyardError | None) -> None:
        """One of the two can't be followed, or can again."""
        if error is None:
            self._troubles.pop(what, None)
        else:
            self._troubles[what] = error.message
        self.trouble("; ".join(self._troubles.values()))

    def note_missing_node(self, *, missing: bool) -> None:
        """The server knows no Node of this name, or does."""
        problem = NotFound("the API server has no Node of this agent's name; set NODE_NAME")
        self.note_trouble("name", problem if missing else None)

    def _put(self, models: dict[str, tuple[CachedModel, DesiredModel]], document: Json) -> bool:
        """Take one in; False when nothing that an agent acts upon is new: statuses change far more often than specs."""
        metadata = document["metadata"]
        name = metadata["name"]
        old = models[name][0] if name in models else None
        if metadata.get("deletionTimestamp"):
            return models.pop(name, None) is not None
        same = (metadata.get("uid", ""), metadata.get("generation", 0))
        if old is not None and (old.metadata.uid, old.metadata.generation) == same and same[1]:
            return False
        whole = {"apiVersion": API_VERSION, "kind": "CachedModel", **document, "status": {}}
        try:
            model = CachedModel.parse(whole)
            models[name] = (model, DesiredModel.of(model))
        except ValidationError as error:
            models.pop(name, None)
            self._problems[name] = f"{name}: {explain(error)}"
        else:
            self._problems.pop(name, None)
        return True

    def _tell(self) -> None:
        if self._models is None or self._labels is None:
            return
        desired_models = [
            desired for model, desired in self._models.values() if model.selects(self._labels)
        ]
        self.want(desired_models, sorted(self._problems.values()))


@dataclass(frozen=True, slots=True)
class ModelListener:
    """Passes CachedModels on."""

    wanted: ClusterWanted

    def replace(self, documents: list[Json]) -> None:
        self.wanted.put_models(documents, anew=True)

    def put(self, document: Json) -> None:
        self.wanted.put_models([document])

    def drop(self, document: Json) -> None:
        self.wanted.drop_model(document["metadata"]["name"])

    def trouble(self, error: WeightyardError | None) -> None:
        self.wanted.note_trouble("models", error)


@dataclass(frozen=True, slots=True)
class NodeListener:
    """Passes this node's labels on. A Node that is gone leaves the labels that it had."""

    wanted: ClusterWanted

    def replace(self, documents: list[Json]) -> None:
        for document in documents:
            self.put(document)
        self.wanted.note_missing_node(missing=not documents)

    def put(self, document: Json) -> None:
        self.wanted.put_labels(document["metadata"].get("labels") or {})

    def drop(self, document: Json) -> None:
        """Its objects go with it; the agent will too."""

    def trouble(self, error: WeightyardError | None) -> None:
        self.wanted.note_trouble("node", error)
