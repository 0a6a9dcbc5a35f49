"""Parses files of the prewarm directory into CachedModels, and tells of those that are refused. Pure.

A Workspace in the directory counts too: its model becomes a desired model.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from cache_agent.api.cached_model import KIND, CachedModel
from cache_agent.api.document_errors import sentence
from cache_agent.api.kube_objects import API_VERSION
from cache_agent.node.desired_detail import WORKSPACE_PREFIX, RefusedDocument
from modelimage.errors import InvalidInput, WeightyardError
from modelimage.log_text import printable
from modelimage.reference import ImageReference, LayoutReference, parse_image
from modelimage.yaml_text import parse_yaml

Json = dict[str, Any]

# A model that a Workspace serves comes before models that are only pre-warmed.
WORKSPACE_PRIORITY: Final = 90
_WORKSPACE: Final = "Workspace"
_LONGEST_NAME: Final = 500
_LONGEST_TEXT: Final = 1000


@dataclass(frozen=True, slots=True)
class Parsed:
    """The documents of one text: those that are valid, and those that aren't."""

    models: tuple[CachedModel, ...] = ()
    refused: tuple[RefusedDocument, ...] = ()


def parse_documents(text: str, *, where: str, base: Path) -> Parsed:
    """Parse a text's documents. An invalid one doesn't affect the others. `oci:` paths are relative to `base`."""
    models: list[CachedModel] = []
    problems: list[RefusedDocument] = []
    try:
        # All at once: after a syntax error the boundaries of the documents are unknown, so none counts.
        documents = list(_documents(text, where))
    except InvalidInput as error:
        return Parsed(refused=(refused(where, error.message.replace(f"{where} is", "it is", 1)),))
    for document in documents:
        try:
            models.append(_absolute(_model(document), base))
        except ValidationError as error:
            problems.append(refuse(document, explain(error), where=where, base=base))
        except (WeightyardError, ValueError) as error:
            problems.append(refuse(document, str(error), where=where, base=base))
    return Parsed(tuple(models), tuple(problems))


def refuse(document: Any, why: str, *, where: str, base: Path | None = None) -> RefusedDocument:
    """The document refused, with the name and the image that it seems to have. `where`: its file or object."""
    name = _text_at(document, "metadata", "name")
    image = _text_at(document, "spec", "image") or _text_at(document, "spec", "model", "image")
    if name and _text_at(document, "kind") == _WORKSPACE:
        name = f"{WORKSPACE_PREFIX}{name}"
    # An image that can't be one is kept as it is written.
    with suppress(InvalidInput):
        image = str(_reference(image, base)) if image else ""
    return refused(where, why, name, image)


def refused(where: str, why: str, name: str = "", image: str = "") -> RefusedDocument:
    """A refusal whose words are a document's own in part: short, on one line, and obeyed by no terminal."""
    return RefusedDocument(_shown(where), _shown(why), name, image)


def _shown(text: str) -> str:
    # Twice: an escape is longer than what it stands for.
    line = printable(" ".join(text[: _LONGEST_TEXT + 1].split()))
    return line if len(line) <= _LONGEST_TEXT else f"{line[:_LONGEST_TEXT]}…"


def _text_at(found: Any, *path: str) -> str:
    """A short text of a document in which nothing need be as it should; empty if there is none."""
    for field in path:
        found = found.get(field) if isinstance(found, dict) else None
    is_short = isinstance(found, str) and len(found) <= _LONGEST_NAME and found.isprintable()
    return found if is_short else ""


def explain(error: ValidationError) -> str:
    """A document's first problem, with the field's path. An unknown field first: it is a missing one, misspelt."""
    errors = error.errors(include_url=False)
    unknown = (each for each in errors if each["type"] == "extra_forbidden")
    return sentence(next(unknown, errors[0]), CachedModel)


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
        for field, given, known in (("spec", spec, "model"), ("spec.model", model, "image")):
            if known not in given and (
                close := difflib.get_close_matches(known, map(str, given), n=1)
            ):
                raise ValueError(f"unknown field {field}.{close[0]}; did you mean {known!r}?")
        raise ValueError("it names no image: only images can be pre-warmed")
    wanted = {
        "image": model["image"],
        "variant": None if model.get("variant", "auto") == "auto" else model["variant"],
        "nodeSelector": resources.get("nodeSelector", {}),
        "priority": WORKSPACE_PRIORITY,
    }
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": f"{WORKSPACE_PREFIX}{name}"},
        "spec": wanted,
    }


def _absolute(model: CachedModel, base: Path) -> CachedModel:
    """The model with its image in canonical form, layout paths made absolute. Raises InvalidInput."""
    reference = _reference(model.spec.image, base)
    spec = model.spec.model_copy(update={"image": str(reference)})
    return model.model_copy(update={"spec": spec})


def _reference(image: str, base: Path | None) -> ImageReference:
    """A document's image in canonical form, its directory below `base`. Raises InvalidInput."""
    reference = parse_image(image)
    if isinstance(reference, LayoutReference) and base is not None:
        return replace(reference, path=base / reference.path)
    return reference
