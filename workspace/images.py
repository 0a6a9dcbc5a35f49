"""Resolves a Workspace's images: the digests of its references, and the records of all variants.

Reads manifests and records through an `ImageReader`, never weights. The caller supplies the function that opens a
reference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from modelimage.descriptor import LINUX_AMD64, Descriptor
from modelimage.digest import Digest
from modelimage.errors import InvalidImage, InvalidInput, NotFound
from modelimage.foreign import describe_foreign, resolve_ours, served_from_image
from modelimage.record import Record
from modelimage.reference import (
    EngineReference,
    ImageReference,
    LayoutReference,
    RegistryReference,
    parse_image,
)
from modelimage.repository import ImageReader
from workspace.render.release import PinnedAdapter, PinnedModel, ResolvedImages
from workspace.schema import AUTO_VARIANT, Workspace
from workspace.servable import Servable
from workspace.sources import image_of, not_built

# Of all variants together: 16 TB of weights. All of their records are in memory while one is chosen.
_MOST_CHUNKS: Final = 500_000
Opener = Callable[[ImageReference], ImageReader]


def resolve_workspace(workspace: Workspace, opener: Opener) -> ResolvedImages:
    """Pins the model and the adapters. Raises NotBuilt when a source's image doesn't exist, and the readers' errors."""
    spec, image = workspace.spec, image_of(workspace)
    wanted = None if spec.model.variant == AUTO_VARIANT else spec.model.variant
    adapters = {each.name: _pin_adapter(each.image, opener) for each in spec.runtime.adapters}
    try:
        return ResolvedImages(_pin_model(image, wanted, opener), adapters)
    except NotFound as error:
        # Only a Hub or S3 source has an image that may have to be built first.
        if spec.model.image is not None:
            raise
        raise not_built(workspace, image) from error


def images_of(workspace: Workspace) -> list[ImageReference]:
    """The references of all of a Workspace's images. Raises InvalidInput."""
    texts = [image_of(workspace), *(each.image for each in workspace.spec.runtime.adapters)]
    return [parse_image(text) for text in texts]


def _pin_model(image: str, variant: str | None, opener: Opener) -> PinnedModel:
    reference = parse_image(image)
    reader = opener(reference)
    root = reader.resolve(_name(reference))
    # Read by digest from here on: a tag that moves in between would mix two versions.
    found = read_variants(reader, root, variant)
    if found is None:
        # Model files don't depend on a processor: any platform's manifest will do.
        served = served_from_image(reader, root, LINUX_AMD64)
        found = {served.variant: served}
    return PinnedModel(_pinned(reference, root.digest), found)


def read_variants(
    reader: ImageReader, root: Descriptor, variant: str | None
) -> dict[str, Servable] | None:
    """The records of one variant, or of all, the default first; None for a foreign image.

    Raises the reader's errors, UnknownVariant.
    """
    first = resolve_ours(reader, root, variant)
    if first is None:
        return None
    records: dict[str, Servable] = {first.record.variant: first.record}
    if variant is None:
        for other in first.variants:
            found = None if other in records else resolve_ours(reader, root, other)
            if found is not None:
                records[other] = found.record
            if sum(map(_chunks, records.values())) > _MOST_CHUNKS:
                raise InvalidImage("the records of the image's variants are too large together")
    return records


def _chunks(servable: Servable) -> int:
    return sum(len(file.chunks) for file in servable.files) if isinstance(servable, Record) else 0


def _pin_adapter(image: str, opener: Opener) -> PinnedAdapter:
    reference = parse_image(image)
    reader = opener(reference)
    root = reader.resolve(_name(reference))
    ours = resolve_ours(reader, root)
    if ours is not None:
        rank = ours.record.facts.lora_rank
        return PinnedAdapter(_pinned(reference, root.digest), ours.key, rank)
    made = describe_foreign(reader, root)
    if made.record is None:
        raise InvalidImage(
            f"the adapter {image} isn't a weightyard image, so its rank is unknown",
            hint="Build the adapter with `weightyard build`.",
        )
    return PinnedAdapter(_pinned(reference, root.digest), made.key, made.record.facts.lora_rank)


def _name(reference: ImageReference) -> str:
    if isinstance(reference, EngineReference):
        raise InvalidInput(
            f"{reference} is in a docker engine, which nodes can't read",
            hint="Push it to a registry, or build it to one.",
        )
    return reference.name


def _pinned(reference: ImageReference, digest: Digest) -> str:
    """The reference by its current digest. The tag is dropped, since it may move."""
    if isinstance(reference, RegistryReference | LayoutReference):
        return str(replace(reference, tag=None, digest=digest))
    raise TypeError(f"no digest for {reference}")
