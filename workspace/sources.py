"""Names the image of a Workspace's model. Nodes serve images only: Hub and S3 sources are built first.

The user sets the target repository (`model.build.to`). The tag is a hash of the build's inputs, so another revision is
another image and nothing is built twice. Pure: names and command lines, no registry.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from typing import Final

from modelimage.errors import InvalidInput, NotFound
from modelimage.quantization import DEFAULT_VARIANT, Variant
from modelimage.reference import ImageReference, RegistryReference, parse_image
from modelimage.source_uris import HUB, S3, is_commit
from workspace.schema import Model, Workspace

_DIGEST: Final = "@sha256:"


class NotBuilt(NotFound):
    """The image of a source doesn't exist yet; the hint has the build command."""


def require_registry(reference: ImageReference) -> RegistryReference:
    """The reference, which in a cluster must be one in a registry. Raises InvalidInput for any other, before any IO."""
    if isinstance(reference, RegistryReference):
        return reference
    raise InvalidInput(
        f"{reference} isn't in a registry, and a cluster's nodes can't read it",
        hint="Push it to a registry with `weightyard copy`, and name it as registry.example/team/model:tag.",
    )


def source_uri(model: Model) -> str | None:
    """The URI of weights that aren't an image; None for an image."""
    for scheme, place in ((HUB, model.hub), (S3, model.s3)):
        if place is not None:
            return f"{scheme}{place}"
    return None


def is_pinned(model: Model) -> bool:
    """Whether what the model is made of can't change: an image's digest, or a commit of the Hub."""
    if model.image is not None:
        return _DIGEST in model.image
    _, _, revision = (model.hub or "").partition("@")
    return is_commit(revision)


def image_of(workspace: Workspace) -> str:
    """The model's image: the given one, or the one to build. Raises InvalidInput when no target is set."""
    model = workspace.spec.model
    if model.image is not None:
        return model.image
    if model.build is None:
        raise InvalidInput(
            f"nodes serve model images, but this workspace names {source_uri(model)}",
            hint="Set spec.model.build.to to a repository, such as registry.example/team/model: the controller "
            "builds the image there. Or build it yourself and set spec.model.image: "
            f"weightyard build {source_uri(model)} --to REGISTRY/NAME:TAG",
        )  # fmt: skip
    return str(_repository(model.build.to).with_tag(build_tag(workspace)))


def build_tag(workspace: Workspace) -> str:
    """The tag of the built image. `rollout.restartedAt` changes it, to rebuild from a branch that moved."""
    said = [
        source_uri(workspace.spec.model), *variants(workspace), workspace.spec.rollout.restarted_at,
    ]  # fmt: skip
    # JSON keeps the parts apart; joined text could be equal for different parts.
    return f"src-{hashlib.sha256(json.dumps(said).encode()).hexdigest()[:12]}"


def variants(workspace: Workspace) -> tuple[str, ...]:
    """The quantized variants to build: the requested ones, and the one to serve if a build makes it.

    Any other is one that the source has, or that its image will turn out to lack.
    """
    model = workspace.spec.model
    requested = model.build.variants if model.build is not None else ()
    served = [each for each in Variant if each == model.variant]
    quantized = (each.value for each in (*requested, *served) if each != DEFAULT_VARIANT)
    return tuple(dict.fromkeys(quantized))


def build_arguments(workspace: Workspace, destination: str) -> tuple[str, ...]:
    """The arguments of `weightyard` that build the image."""
    chosen = [word for each in variants(workspace) for word in ("--variant", each)]
    return ("build", source_uri(workspace.spec.model) or "", "--to", destination, *chosen)


def not_built(workspace: Workspace, image: str) -> NotBuilt:
    """The error for a source whose image the registry doesn't have."""
    words = shlex.join(("weightyard", *build_arguments(workspace, image)))
    return NotBuilt(
        f"{source_uri(workspace.spec.model)} isn't built into {image} yet", hint=f"Run: {words}"
    )


def _repository(text: str) -> RegistryReference:
    found = parse_image(text)
    last = text.rpartition("/")[2]
    if not isinstance(found, RegistryReference) or found.digest is not None or ":" in last:
        raise InvalidInput(
            f"spec.model.build.to is a repository in a registry, without a tag, not {text!r}",
            hint="Write it as registry.example/team/model; the tag is derived from what is built.",
        )
    return found
