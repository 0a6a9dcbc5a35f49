"""Builds a deployment's Workspace, and reads back what it was made from. Pure.

The Workspace's annotations are all that is kept of a deployment: whoever has access to it can update and delete it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from modelimage.errors import InvalidInput
from weightyard.mlflow_deployments.config import Part, Values, part_of, with_fields
from weightyard.mlflow_deployments.model_uri import DeployedModel
from workspace.render.names import DOMAIN

Json = dict[str, Any]
FLAVOR: Final = "transformers"
MODEL_URI: Final = f"mlflow.{DOMAIN}/model-uri"  # as it was given: an alias may move
MODEL: Final = f"mlflow.{DOMAIN}/model"
VERSION: Final = f"mlflow.{DOMAIN}/version"
RUN: Final = f"mlflow.{DOMAIN}/run"
BUILD: Final = f"mlflow.{DOMAIN}/build"


@dataclass(frozen=True, slots=True)
class Deployment:
    """What a Workspace was made from: the URI as given, the model that it named then, and how its image is built."""

    name: str
    model_uri: str
    model: str
    version: str
    run: str
    image: str
    build: Mapping[str, Any]

    def is_of(self, model: DeployedModel, build: Values) -> bool:
        """Whether its image is the one of this model, built so. What a run has may change under its name."""
        same = (self.model, self.version) == (model.name, model.version)
        return same and bool(model.version) and dict(self.build) == _plain(build)


@dataclass(frozen=True, slots=True)
class Found:
    """A deployment as it is: its Workspace, and how it stands. `state` is one word, `message` why."""

    document: Json
    state: str
    message: str = ""
    url: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


def deployment_of(document: Mapping[str, Any]) -> Deployment | None:
    """What a Workspace was deployed from; None for one that MLflow didn't make."""
    metadata = document["metadata"]
    notes = metadata.get("annotations") or {}
    if MODEL_URI not in notes:
        return None
    try:
        build = json.loads(notes.get(BUILD) or "{}")
    except (ValueError, RecursionError):
        build = {}
    return Deployment(
        metadata["name"], notes[MODEL_URI], notes.get(MODEL, ""), notes.get(VERSION, ""), notes.get(RUN, ""),
        document["spec"]["model"].get("image", ""), part_of(build, Part.BUILD) if isinstance(build, dict) else {},
    )  # fmt: skip


def workspace_document(
    name: str, namespace: str | None, base: Mapping[str, Any], values: Values
) -> Json:
    """A new Workspace with a spec's fields and those of the config. Its model is set by `with_model`."""
    metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
    return {
        "apiVersion": "weightyard.dev/v1alpha1",
        "kind": "Workspace",
        "metadata": metadata,
        "spec": with_fields(_replicated(base, values), values),
    }


def changed_document(
    document: Mapping[str, Any], base: Mapping[str, Any] | None, values: Values
) -> Json:
    """A Workspace with the fields of the given config alone changed, or with another spec below them."""
    spec = document["spec"] if base is None else {**base, "model": document["spec"]["model"]}
    return {**document, "spec": with_fields(_replicated(spec, values), values)}


def with_model(
    document: Mapping[str, Any], model: DeployedModel, image: str, values: Values
) -> Json:
    """The Workspace that serves an image of a model. `values` are those by which the next one is built."""
    metadata, spec = document["metadata"], document["spec"]
    notes = {
        MODEL_URI: model.uri, MODEL: model.name, VERSION: model.version, RUN: model.run,
        BUILD: json.dumps(_plain(values), sort_keys=True),
    }  # fmt: skip
    kept = {k: v for k, v in (metadata.get("annotations") or {}).items() if k not in notes}
    told = {name: value for name, value in notes.items() if value and value != "{}"}
    served = {k: v for k, v in spec.get("model", {}).items() if k not in ("hub", "s3", "build")}
    return {
        **document,
        "metadata": {**metadata, "annotations": {**kept, **told}},
        "spec": {**spec, "model": {**served, "image": image}},
    }


def described(found: Found, target: str) -> Json:
    """A deployment as MLflow lists it: `name`, and what else is known. Raises InvalidInput for another Workspace."""
    made = deployment_of(found.document)
    if made is None:
        raise InvalidInput(f"{found.document['metadata']['name']} wasn't deployed through MLflow")
    return {
        "name": made.name, "flavor": FLAVOR, "target": target, "state": found.state, "message": found.message,
        "model_uri": made.model_uri, "model": made.model, "version": made.version, "run_id": made.run,
        "image": made.image, "url": found.url, **found.facts,
    }  # fmt: skip


def _replicated(spec: Mapping[str, Any], values: Values) -> Json:
    """The spec without its scaler where a number of replicas is given: the two exclude each other."""
    drop = ("scale",) if values.get("replicas") is not None else ()
    return {name: value for name, value in spec.items() if name not in drop}


def _plain(values: Values) -> Json:
    """The values of the BUILD part as JSON has them."""
    built = part_of(values, Part.BUILD)
    return {name: list(v) if isinstance(v, tuple) else v for name, v in built.items()}
