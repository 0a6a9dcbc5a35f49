"""Describes a foreign image: the thin part that queries the registry. The rest of the package is pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from modelimage import canonical
from modelimage.choose import resolve_manifest
from modelimage.descriptor import LINUX_AMD64, Descriptor, Platform
from modelimage.errors import InvalidImage
from modelimage.foreign.artifact import map_artifact
from modelimage.foreign.container_image import map_image
from modelimage.foreign.detect import ForeignManifest
from modelimage.foreign.dockermodel import map_docker_model
from modelimage.foreign.kitops import map_kitops
from modelimage.foreign.layer_files import list_layer
from modelimage.foreign.layer_values import Mapped
from modelimage.foreign.limits import Limits
from modelimage.foreign.model import ForeignModel, ImageFormat, Packing
from modelimage.foreign.modelpack import map_modelpack
from modelimage.foreign.ollama import map_ollama
from modelimage.foreign.original import carried_record, with_listed_record
from modelimage.repository import ImageReader
from modelimage.resolve import read_blob

# Configs are read into memory, so untrusted ones are bounded.
MAX_CONFIG_BYTES: Final = 8 << 20

_MAPPINGS: Final[Mapping[ImageFormat, Callable[[ForeignManifest, Mapping[str, Any]], Mapped]]] = {
    ImageFormat.MODELPACK: map_modelpack,
    ImageFormat.KITOPS: map_kitops,
    ImageFormat.DOCKER_MODEL: map_docker_model,
    ImageFormat.OLLAMA: map_ollama,
    ImageFormat.ARTIFACT: map_artifact,
    ImageFormat.IMAGE: map_image,
}


def describe_foreign(
    reader: ImageReader,
    root: Descriptor,
    *,
    platform: Platform = LINUX_AMD64,
    limits: Limits | None = None,
) -> ForeignModel:
    """Describe the image below `root`, an index or a manifest, as far as possible without reading all of it.

    Raises NotFound if an index has no manifest for the platform, InvalidImage, DigestMismatch, and any error of the
    reader.
    """
    bounds = limits or Limits()
    descriptor = resolve_manifest(reader, root, platform)
    document = canonical.parse(reader.manifest(descriptor), what=f"manifest {descriptor.digest}")
    manifest = ForeignManifest.parse(document)
    mapped = _MAPPINGS[manifest.kind](manifest, _config(reader, manifest))
    if not mapped.layers:
        raise InvalidImage("the image contains no model files")
    layers = tuple(
        layer if layer.packing is Packing.RAW else list_layer(reader, layer, bounds)
        for layer in mapped.layers
    )
    carried = carried_record(reader, manifest.kind, layers)
    left_out = dict(mapped.left_out)
    # Fewer layers above the record than it lists: they are in another order, or merged.
    if carried is not None and len(layers) - carried[0] > len(carried[1].layers):
        # What is below the record is the base image that the model was built on.
        below, layers = layers[: carried[0]], layers[carried[0] :]
        left_out |= {str(layer.digest): "a layer of the base image" for layer in below}
    model = ForeignModel(
        root=root,
        manifest=descriptor,
        kind=manifest.kind,
        layers=layers,
        left_out=left_out,
        limits=bounds,
        record=carried[1] if carried else None,
    )
    return with_listed_record(reader, model.listed({}))


def _config(reader: ImageReader, manifest: ForeignManifest) -> Mapping[str, Any]:
    # An artifact's config may be anything and doesn't describe its layers.
    if manifest.kind is ImageFormat.ARTIFACT:
        return {}
    data = read_blob(reader, manifest.config, limit=MAX_CONFIG_BYTES)
    return canonical.parse(data, what=f"config {manifest.config.digest}")
