"""The base image of a build: opened where it is, and copied below the model's layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from modelimage.access import Access, open_reader
from modelimage.base import BaseImage, read_bases
from modelimage.descriptor import Platform
from modelimage.publication import PLATFORMS
from modelimage.reference import ImageReference, LayoutReference, RegistryReference
from modelimage.repository import ImageReader


@dataclass(frozen=True, slots=True)
class Base:
    """The base image of each platform that it has, and where its layers are read."""

    reader: ImageReader
    images: Mapping[Platform, BaseImage]

    @property
    def layer_count(self) -> int:
        """Layers of the platform that has most of them."""
        return max(len(image.layers) for image in self.images.values())


def open_base(reference: RegistryReference | LayoutReference, access: Access) -> Base:
    """Read what a base image is. Raises NotFound, InvalidImage, InvalidInput and what reading raises."""
    reader = open_reader(reference, access)
    root = reader.resolve(reference.name)
    return Base(reader, read_bases(reader, root, PLATFORMS))


def mount_source(base: ImageReference, destination: ImageReference) -> tuple[str, ...]:
    """The base's repository where the destination's registry holds it: its layers need not move."""
    if not isinstance(base, RegistryReference) or not isinstance(destination, RegistryReference):
        return ()
    return (base.repository,) if base.registry == destination.registry else ()
