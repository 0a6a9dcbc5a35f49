"""Resolves an image and counts the bytes that this node lacks, before a fetch, so that the fetch can be planned."""

from __future__ import annotations

from dataclasses import dataclass

from cache_agent.fetch.range_planner import unique_files
from cache_agent.prewarm.values import FetchTarget
from cache_agent.store.partials import identity
from cache_agent.store.roots import Roots
from cache_agent.store.values import repository_of
from modelimage import canonical
from modelimage.descriptor import Descriptor, Platform
from modelimage.digest import Digest
from modelimage.errors import InvalidImage, InvalidInput
from modelimage.foreign import resolve_manifest, resolve_ours
from modelimage.reference import (
    EngineReference,
    LayoutReference,
    RegistryReference,
    parse_image,
)
from modelimage.repository import ImageReader


@dataclass(frozen=True, slots=True)
class ResolvedTarget:
    """A resolved image: `need` bytes are missing. `key` is None for images without a record."""

    key: Digest | None
    need: int


def parse_wanted(text: str) -> RegistryReference | LayoutReference:
    """Parse the name of an image that a node can fetch. Raises InvalidInput."""
    image = parse_image(text)
    if isinstance(image, EngineReference):
        raise InvalidInput(
            f"a docker engine's image can't be cached: {text}", hint="Push it to a registry."
        )
    return image


def resolve_target(
    roots: Roots,
    reader: ImageReader,
    image: RegistryReference | LayoutReference,
    target: FetchTarget,
    platform: Platform,
) -> ResolvedTarget:
    """Resolve an image and count its missing bytes. Raises the errors of resolving, and DiskFailed.

    Files that came through another repository count as missing: they may have to be fetched again through this one.
    """
    root = reader.resolve(image.name)
    ours = resolve_ours(reader, root, target.variant, platform=platform)
    if ours is None:
        # Without a record only the layers' sizes are known; their files may be smaller or larger.
        manifest = resolve_manifest(reader, root, platform)
        document = canonical.parse(reader.manifest(manifest), what=f"manifest {manifest.digest}")
        layers = document.get("layers")
        if not isinstance(layers, list):
            raise InvalidImage(f"malformed manifest {manifest.digest}: no list of layers")
        return ResolvedTarget(None, sum(Descriptor.from_json(layer).size for layer in layers))
    record = ours.record
    repository = repository_of(image)
    missing = [
        file
        for file in unique_files(record.files)
        if roots.files.get(file.digest) is None or not roots.files.is_authorized(repository, file)
    ]
    here = sum(
        max(store.partials.size(identity(file)) for store in roots.stores) for file in missing
    )
    return ResolvedTarget(record.key, sum(file.size for file in missing) - here)
