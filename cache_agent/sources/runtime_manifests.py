"""Fills the manifest cache after a pull with the manifests and configs that a container runtime requests."""

from __future__ import annotations

from collections.abc import Iterator

from cache_agent.sources.source import ResolvedSource
from cache_agent.store.manifests import ManifestCache
from cache_agent.store.values import repository_of
from modelimage import canonical
from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.errors import InvalidImage
from modelimage.mediatypes import ANNOTATION_MODEL_KEY, INDEX_TYPES
from modelimage.reference import ImageReference, RegistryReference
from modelimage.repository import ImageReader
from modelimage.resolve import list_models, read_blob

_MAX_CONFIG = 4 << 20


def cache_manifests(
    manifest_cache: ManifestCache,
    image: ImageReference,
    resolved: ResolvedSource,
    reader: ImageReader,
) -> None:
    """Cache the index that names a model, every manifest of that model in it, and their configs.

    Does nothing for layout directories: no registry client requests them by name. Raises the reader's and the
    cache's errors.
    """
    if not isinstance(image, RegistryReference):
        return
    # A pull by digest shows nothing about the tag's current target.
    tags = {image.name: resolved.root.digest} if image.digest is None else {}
    manifest_cache.keep(repository_of(image), list(_documents(resolved, reader)), tags)


def _documents(resolved: ResolvedSource, reader: ImageReader) -> Iterator[tuple[Descriptor, bytes]]:
    if resolved.root.media_type in INDEX_TYPES:
        yield resolved.root, reader.manifest(resolved.root)
    for manifest in _manifests(resolved, reader):
        data = reader.manifest(manifest)
        config = config_of(data, manifest)
        yield config, read_blob(reader, config, limit=_MAX_CONFIG)
        yield manifest, data


def config_of(manifest: bytes, descriptor: Descriptor) -> Descriptor:
    """The config descriptor of a manifest. Raises InvalidImage."""
    document = canonical.parse(manifest, what=f"manifest {descriptor.digest}")
    return Descriptor.from_json(document.get("config"))


def layers_of(manifest: bytes) -> Iterator[Descriptor]:
    """The layer descriptors of a manifest; none for an index. Raises InvalidImage."""
    layers = canonical.parse(manifest, what="a manifest").get("layers", [])
    if not isinstance(layers, list):
        raise InvalidImage("malformed manifest: layers")
    yield from map(Descriptor.from_json, layers)


def layer_sizes(reader: ImageReader, manifest: Descriptor) -> dict[Digest, int]:
    """The sizes in bytes of an image's layers: all that is known about a foreign image before they are read."""
    return {layer.digest: layer.size for layer in layers_of(reader.manifest(manifest))}


def _manifests(resolved: ResolvedSource, reader: ImageReader) -> Iterator[Descriptor]:
    for manifest in list_models(reader, resolved.root):
        named = manifest.annotations.get(ANNOTATION_MODEL_KEY)
        if manifest.digest == resolved.manifest.digest or named == str(resolved.key):
            yield manifest
