"""The base image of a build: opened in its repository, and placed below the model's layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from modelimage.access import Access, open_reader
from modelimage.base_images import read_bases
from modelimage.descriptor import Platform
from modelimage.publication import PLATFORMS, BaseImage
from modelimage.reference import ImageReference, LayoutReference, RegistryReference
from modelimage.repository import ImageReader


@dataclass(frozen=True, slots=True)
class Base:
    """The base image of each available platform, and a reader for its layers."""

    reader: ImageReader
    images: Mapping[Platform, BaseImage]

    @property
    def layer_count(self) -> int:
        """The largest number of layers of any platform."""
        return max(len(image.layers) for image in self.images.values())


def open_base(reference: RegistryReference | LayoutReference, access: Access) -> Base:
    """Open and read a base image. Raises NotFound, InvalidImage, InvalidInput and any read error."""
    reader = open_reader(reference, access)
    root = reader.resolve(reference.name)
    return Base(reader, read_bases(reader, root, PLATFORMS))


def mount_source(base: ImageReference, destination: ImageReference) -> tuple[str, ...]:
    """The base's repository if it is in the destination's registry: its layers are then mounted, not sent."""
    if not isinstance(base, RegistryReference) or not isinstance(destination, RegistryReference):
        return ()
    # A registry mounts blobs of its own repositories alone (distribution-spec, "Mounting a blob").
    return (base.repository,) if base.registry == destination.registry else ()
