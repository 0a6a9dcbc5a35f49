"""The destination of a build, and the checks made before the first byte is hashed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from builder.layer_plan import PlannedLayer
from builder.publish import put_document
from modelimage import mediatypes
from modelimage.access import Access, open_image_repository
from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.durable import nearest_existing
from modelimage.errors import InvalidInput, NotWritable
from modelimage.layout import Layout
from modelimage.publication import Document
from modelimage.recipe import models_link_layer
from modelimage.reference import (
    DEFAULT_TAG,
    EngineReference,
    ImageReference,
    LayoutReference,
    RegistryReference,
    check_directory_meant,
    check_tag,
)
from modelimage.registry.preflight import findings, raise_fatal
from modelimage.registry.profiles import profile_for
from modelimage.repository import ImageWriter, StreamedWriter

# The layers of the record and of the link.
FIXED_LAYERS: Final = 2


@dataclass(frozen=True, slots=True)
class Destination:
    """An open destination. `layout` is set if layers can be written while they are hashed.

    `streamed` accepts layers whose files stayed at their source; None if the destination can't.
    """

    reference: ImageReference
    writer: ImageWriter
    layout: Layout | None = None
    streamed: StreamedWriter | None = None

    @property
    def version(self) -> str:
        """The tag of the build."""
        return self.reference.tag or DEFAULT_TAG

    @property
    def reports_progress(self) -> bool:
        """Whether sending layers moves bytes: a layout already has them by then, an engine reads them later."""
        return isinstance(self.reference, RegistryReference)


def open_destination(
    reference: RegistryReference | LayoutReference,
    access: Access,
    *,
    mount_from: Sequence[str] = (),
) -> Destination:
    """Open a destination, without accessing it. Raises InvalidInput for a reference that can't be built to.

    `mount_from` names repositories of the same registry whose layers are mounted instead of sent.
    """
    if reference.digest is not None:
        raise InvalidInput(
            f"can't build to a digest: {reference}",
            hint="Give a tag instead: the digest is known after the build.",
        )
    writer = open_image_repository(reference, access, mount_from=mount_from)
    layout = writer if isinstance(writer, Layout) else None
    return Destination(reference, writer, layout, writer)


def published_tags(version: str, variants: Sequence[str]) -> list[str]:
    """The tags written by a build of these variants, the default variant first."""
    names = [version, *(f"{version}-{variant}" for variant in variants[1:])]
    return [*names, *(f"{name}-modelpack" for name in names)]


def preflight(
    destination: Destination,
    variants: Sequence[str],
    layers: Sequence[PlannedLayer],
    *,
    base_layers: int = 0,
) -> list[str]:
    """Check that the destination is writable and accepts the layers; returns warnings about uncertain limits.

    For a registry, stores the one blob that every image has. A directory is only inspected, so that a build that fails
    later leaves no empty layout behind. Raises InvalidInput for invalid tags, RemoteRefused for layers beyond a
    registry's limits, AccessDenied, Unreachable, NotWritable, NoSpace.
    """
    # Now, not at the end: the registry would refuse an invalid tag only after everything was sent.
    for tag in published_tags(destination.version, variants):
        check_tag(tag)
    if isinstance(destination.reference, LayoutReference):
        check_writable(destination.reference.path)
        return []
    # An engine loads the whole image at the end, so there is nothing to try before.
    if isinstance(destination.reference, EngineReference):
        return []
    doubts = _check_limits(destination.reference, layers, base_layers)
    link = models_link_layer()
    descriptor = Descriptor(mediatypes.OCI_LAYER_TAR, Digest.of(link), len(link))
    # Only storing a blob shows reliably that the credentials allow writing.
    put_document(destination.writer, Document(descriptor, link))
    return doubts


def _check_limits(
    reference: RegistryReference, layers: Sequence[PlannedLayer], base_layers: int
) -> list[str]:
    found = findings(
        profile_for(reference.api_host),
        layer_sizes=[layer.size for layer in layers],
        layer_count=len(layers) + FIXED_LAYERS + base_layers,
    )
    return [f"{finding.message}. {finding.hint}" for finding in raise_fatal(found)]


def check_writable(directory: Path) -> None:
    """Raise NotWritable unless new files can be created in a directory, or in the one it would be created in.

    Raises InvalidInput for the name of a registry.
    """
    check_directory_meant(directory)
    there = nearest_existing(directory)
    if not there.is_dir():
        raise NotWritable(
            f"can't write {directory}: {there} is not a directory", hint="Choose another directory."
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise NotWritable(
            f"can't write {directory}: {there} isn't writable",
            hint="Choose a directory that you may write to.",
        )
