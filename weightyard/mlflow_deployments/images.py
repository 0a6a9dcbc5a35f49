"""Builds a model's image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from modelimage.digest import Digest
from modelimage.errors import InvalidInput
from modelimage.reference import (
    EngineReference,
    LayoutReference,
    RegistryReference,
    parse_image,
)
from weightyard.console import Console
from weightyard.mlflow_deployments.config import Values
from weightyard.mlflow_deployments.model_uri import DeployedModel


@dataclass(frozen=True, slots=True)
class PublishedModel:
    """A published image, named by its digest; its variants, and what was measured of each, in a line."""

    image: str
    variants: tuple[str, ...]
    quality: Mapping[str, str]


def image_name(model: DeployedModel, values: Values, *, directory: Path | None) -> str:
    """Where the image of a model goes: the registry, or a layout in `directory`. Raises InvalidInput."""
    tag = model.tag(values.get("variants") or ())
    registry = str(values.get("registry") or "").rstrip("/")
    if not registry:
        if directory is None:
            raise InvalidInput(
                "nodes pull images from a registry, and none is named",
                hint="Give -C registry=registry.example/team.",
            )
        return f"oci:{directory / model.repository}:{tag}"
    name = f"{registry}/{model.repository}:{tag}"
    if not isinstance(parse_image(name), RegistryReference):
        raise InvalidInput(f"{registry!r} is no registry", hint="Give registry.example/team.")
    return name


def publish(model: DeployedModel, name: str, values: Values, console: Console) -> PublishedModel:
    """Build the image and push it. Raises the build's errors; an interrupted build resumes at the next call."""
    # Imported here: only what builds needs the builder.
    from weightyard.python_api.builds import build  # noqa: PLC0415

    console.say(f"building {model.source} into {name}")
    built = build(
        model.source,
        name,
        variants=values.get("variants") or (),
        evaluate=bool(values.get("evaluate")),
        max_perplexity_ratio=values.get("max_perplexity_ratio"),
        max_kl=values.get("max_kl"),
        **_access(values),
    )
    variants = tuple(each.name for each in built.variants)
    quality = {each.name: each.quality for each in built.variants if each.quality}
    return PublishedModel(_pinned(built.image, built.digest), variants, quality)


def _access(values: Values) -> dict[str, Any]:
    ca_file = values.get("ca_file")
    return {
        "plain_http": values.get("plain_http") or (),
        "ca_file": Path(ca_file) if ca_file else None,
    }


def _pinned(image: str, digest: str) -> str:
    """An image by digest: the same bytes, wherever the tag moves."""
    return str(replace(_reference(image), digest=Digest.parse(digest)))


def _reference(image: str) -> RegistryReference | LayoutReference:
    """An image in a registry or a layout. Raises InvalidInput."""
    reference = parse_image(image)
    if isinstance(reference, EngineReference):
        raise InvalidInput(f"{image} is in a docker engine", hint="Give registry.example/team.")
    return reference
