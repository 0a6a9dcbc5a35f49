"""Fills the shelf: once a model was pulled, what else a container runtime will ask for when it pulls the same image."""

from __future__ import annotations

from collections.abc import Iterator

from cache_agent.sources.source import Resolved
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
    manifest_cache: ManifestCache, image: ImageReference, resolved: Resolved, reader: ImageReader
) -> None:
    """Keep the index that names a model, every manifest of that model in it, and their configs.

    Images in layout directories aren't asked for by name through a registry's API, so nothing of them is kept.
    Raises what the reader and the shelf raise.
    """
    if not isinstance(image, RegistryReference):
        return
    tags = {image.name: resolved.root.digest} if image.digest is None else {}
    manifest_cache.keep(repository_of(image), list(_documents(resolved, reader)), tags)


def _documents(resolved: Resolved, reader: ImageReader) -> Iterator[tuple[Descriptor, bytes]]:
    if resolved.root.media_type in INDEX_TYPES:
        yield resolved.root, reader.manifest(resolved.root)
    for manifest in _manifests(resolved, reader):
        data = reader.manifest(manifest)
        config = config_of(data, manifest)
        yield config, read_blob(reader, config, limit=_MAX_CONFIG)
        yield manifest, data


def config_of(manifest: bytes, descriptor: Descriptor) -> Descriptor:
    """The config that a manifest names. Raises InvalidImage."""
    document = canonical.parse(manifest, what=f"manifest {descriptor.digest}")
    return Descriptor.from_json(document.get("config"))


def layers_of(manifest: bytes) -> Iterator[Descriptor]:
    """The layers that a manifest names; none of an index. Raises InvalidImage."""
    layers = canonical.parse(manifest, what="a manifest").get("layers", [])
    if not isinstance(layers, list):
        raise InvalidImage("malformed manifest: layers")
    yield from map(Descriptor.from_json, layers)


def layer_sizes(reader: ImageReader, manifest: Descriptor) -> dict[Digest, int]:
    """Bytes of an image's layers. Of a foreign image that is all that is known before they were read."""
    return {layer.digest: layer.size for layer in layers_of(reader.manifest(manifest))}


def _manifests(resolved: Resolved, reader: ImageReader) -> Iterator[Descriptor]:
    for manifest in list_models(reader, resolved.root):
        named = manifest.annotations.get(ANNOTATION_MODEL_KEY)
        if manifest.digest == resolved.manifest.digest or named == str(resolved.key):
            yield manifest
