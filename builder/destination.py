"""Where a build goes, and what is asked of it before the first byte is hashed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from builder.plan import PlannedLayer
from builder.publish import put_document
from modelimage import mediatypes
from modelimage.access import Access, open_place
from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.durable import reading
from modelimage.errors import InvalidInput, NoSpace, NotWritable
from modelimage.layout import Layout
from modelimage.publication import Document
from modelimage.recipe import models_link_layer
from modelimage.reference import (
    DEFAULT_TAG,
    EngineReference,
    ImageReference,
    LayoutReference,
    RegistryReference,
    check_tag,
)
from modelimage.registry.preflight import RegistryLimit, findings
from modelimage.registry.profiles import profile_for
from modelimage.repository import ImageWriter, PassingWriter

# The record's layer and the link's.
FIXED_LAYERS: Final = 2


@dataclass(frozen=True, slots=True)
class Destination:
    """An open destination. `layout` is set when layers can be written while they are hashed.

    `passing` is where layers can go whose files stayed at their source; None where they can't.
    """

    reference: ImageReference
    writer: ImageWriter
    layout: Layout | None = None
    passing: PassingWriter | None = None

    @property
    def version(self) -> str:
        """The tag that the build is published under."""
        return self.reference.tag or DEFAULT_TAG

    @property
    def tells_progress(self) -> bool:
        """Whether bytes move while layers are sent: a layout has them by then, an engine takes them later."""
        return isinstance(self.reference, RegistryReference)


def open_destination(
    reference: RegistryReference | LayoutReference,
    access: Access,
    *,
    mount_from: Sequence[str] = (),
) -> Destination:
    """Raises InvalidInput for what can't be built to. Nothing is touched yet.

    `mount_from` names repositories of the same registry whose layers are taken over instead of sent.
    """
    if reference.digest is not None:
        raise InvalidInput(
            f"can't build to a digest: {reference}",
            hint="Name a tag; the digest is what the build gives.",
        )
    writer = open_place(reference, access, mount_from=mount_from)
    layout = writer if isinstance(writer, Layout) else None
    return Destination(reference, writer, layout, writer)


def published_tags(version: str, variants: Sequence[str]) -> list[str]:
    """The tags a build of these variants writes, the default variant first."""
    names = [version, *(f"{version}-{variant}" for variant in variants[1:])]
    return [*names, *(f"{name}-modelpack" for name in names)]


def preflight(
    destination: Destination,
    variants: Sequence[str],
    layers: Sequence[PlannedLayer],
    *,
    base_layers: int = 0,
) -> list[str]:
    """Refuse what the destination can't take, and see that it can be written to; what it may not take is returned.

    A registry is asked by storing the one blob that every image has; a directory is looked at only, so that a build
    which fails later leaves no empty layout behind. Raises InvalidInput for tags it can't hold, RemoteRefused
    for layers beyond a registry's limits, AccessDenied, Unreachable, NotWritable, NoSpace.
    """
    for tag in published_tags(destination.version, variants):
        check_tag(tag)
    if isinstance(destination.reference, LayoutReference):
        check_writable(destination.reference.path)
        return []
    if isinstance(destination.reference, EngineReference):
        return []
    doubts = _check_limits(destination.reference, layers, base_layers)
    link = models_link_layer()
    descriptor = Descriptor(mediatypes.OCI_LAYER_TAR, Digest.of(link), len(link))
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
    for finding in found:
        if finding.fatal:
            raise RegistryLimit(finding.message, hint=finding.hint)
    return [f"{finding.message}. {finding.hint}" for finding in found]


def check_writable(directory: Path) -> None:
    """Raise NotWritable unless a directory, or the one it would be made in, takes new files."""
    there = _nearest(directory)
    if not there.is_dir():
        raise NotWritable(
            f"can't write {directory}: {there} is not a directory", hint="Choose another directory."
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise NotWritable(
            f"can't write {directory}: {there} takes no new files",
            hint="Choose a directory that you may write to.",
        )


def _nearest(path: Path) -> Path:
    """The path, or the nearest of its parents that is there."""
    path = path.absolute()
    return next((each for each in (path, *path.parents) if each.exists()), path)


def check_space(directory: Path, layer_sizes: Iterable[int]) -> None:
    """Raise NoSpace when layers of these sizes in bytes can't fit into the filesystem of `directory`."""
    needed = sum(layer_sizes)
    there = _nearest(directory)
    with reading(there):
        free = shutil.disk_usage(there).free
    if needed > free:
        raise NoSpace(
            f"{directory} needs {needed} bytes for the layers and has {free} free",
            hint="Free space there, or build to another disk or a registry.",
        )
