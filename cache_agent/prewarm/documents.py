"""Parses files of the prewarm directory into CachedModels and problems. Pure.

A Workspace in the directory counts too: its model becomes a desired model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from cache_agent.api.cached_model import KIND, CachedModel
from cache_agent.api.document_errors import sentence
from cache_agent.api.kube_objects import API_VERSION
from modelimage.errors import InvalidInput, WeightyardError
from modelimage.reference import LayoutReference, parse_image
from modelimage.yaml_text import parse_yaml

Json = dict[str, Any]

# A model that a Workspace serves comes before models that are only pre-warmed.
WORKSPACE_PRIORITY: Final = 90
_WORKSPACE: Final = "Workspace"


@dataclass(frozen=True, slots=True)
class Parsed:
    """The documents of one text, and messages for the invalid ones."""

    models: tuple[CachedModel, ...] = ()
    problems: tuple[str, ...] = field(default=())


def parse_documents(text: str, *, where: str, base: Path) -> Parsed:
    """Parse a text's documents. An invalid one doesn't affect the others. `oci:` paths are relative to `base`."""
    models: list[CachedModel] = []
    problems: list[str] = []
    try:
        # All at once: after a syntax error the boundaries of the documents are unknown, so none counts.
        documents = list(_documents(text, where))
    except InvalidInput as error:
        return Parsed(problems=(error.message,))
    for document in documents:
        try:
            models.append(_absolute(_model(document), base))
        except ValidationError as error:
            problems.append(f"{where}: {explain(error)}")
        except (WeightyardError, ValueError) as error:
            problems.append(f"{where}: {error}")
    return Parsed(tuple(models), tuple(problems))


def explain(error: ValidationError) -> str:
    """A document's first problem, with the field's path."""
    return sentence(error.errors(include_url=False)[0], CachedModel)


def _documents(text: str, where: str) -> Iterator[Any]:
    for document in parse_yaml(text, what=where):
        # `kubectl get -o yaml` writes a List.
        if isinstance(document, dict) and isinstance(document.get("items"), list):
            yield from document["items"]
        else:
            yield document


def _model(document: Any) -> CachedModel:
    kind = document.get("kind") if isinstance(document, dict) else None
    if kind == _WORKSPACE:
        document = _of_workspace(document)
    elif kind != KIND:
        raise ValueError(f"expected a {KIND} or a {_WORKSPACE}, found {kind or 'something else'}")
    return CachedModel.parse(document)


def _of_workspace(document: Json) -> Json:
    """A Workspace's model as a CachedModel. The rest of the Workspace is validated elsewhere."""
    spec = document.get("spec")
    spec = spec if isinstance(spec, dict) else {}
    model, resources = spec.get("model"), spec.get("resources")
    model = model if isinstance(model, dict) else {}
    resources = resources if isinstance(resources, dict) else {}
    metadata = document.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    if "image" not in model:
        raise ValueError(f"Workspace {name} names no image: only images can be pre-warmed")
    wanted = {
        "image": model["image"],
        "variant": None if model.get("variant", "auto") == "auto" else model["variant"],
        "nodeSelector": resources.get("nodeSelector", {}),
        "priority": WORKSPACE_PRIORITY,
    }
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        # With a prefix, so that it doesn't clash with a CachedModel of the same name.
        "metadata": {"name": f"workspace.{name}"},
        "spec": wanted,
    }


def _absolute(model: CachedModel, base: Path) -> CachedModel:
    """The model with its image in canonical form, layout paths made absolute. Raises InvalidInput."""
    reference = parse_image(model.spec.image)
    if isinstance(reference, LayoutReference):
        reference = replace(reference, path=base / reference.path)
    spec = model.spec.model_copy(update={"image": str(reference)})
    return model.model_copy(update={"spec": spec})
