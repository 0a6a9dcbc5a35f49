"""Detects the kind of a foreign manifest. Pure: parsed document to ForeignManifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from modelimage import mediatypes
from modelimage.descriptor import Descriptor, descriptors
from modelimage.errors import InvalidImage
from modelimage.foreign.model import ImageFormat

# CNAI was ModelPack's name before it moved to the CNCF.
MODELPACK_PREFIXES: Final = ("application/vnd.cncf.model.", "application/vnd.cnai.model.")
KITOPS_PREFIX: Final = "application/vnd.kitops.modelkit."
DOCKER_MODEL_PREFIX: Final = "application/vnd.docker.ai."
OLLAMA_PREFIX: Final = "application/vnd.ollama.image."
IMAGE_LAYER_PREFIXES: Final = (
    "application/vnd.oci.image.layer.",
    "application/vnd.docker.image.rootfs.",
)
# Formats that name themselves by the artifact type or the config's media type. They come before the generic ones,
# because their layers and configs can also look like those of an image or an artifact.
_NAMED: Final = (
    (ImageFormat.MODELPACK, MODELPACK_PREFIXES),
    (ImageFormat.KITOPS, (KITOPS_PREFIX,)),
    (ImageFormat.DOCKER_MODEL, (DOCKER_MODEL_PREFIX,)),
)
# Formats that only their layers name: artifact type and config are those of a container image.
_BY_LAYERS: Final = ((ImageFormat.OLLAMA, (OLLAMA_PREFIX,)),)
_IMAGE_CONFIGS: Final = frozenset(
    {mediatypes.OCI_CONFIG, "application/vnd.docker.container.image.v1+json"}
)
_SIGNED_V1: Final = "application/vnd.docker.distribution.manifest.v1"


@dataclass(frozen=True, slots=True)
class ForeignManifest:
    """A manifest in another tool's format, and its kind."""

    kind: ImageFormat
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str]

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> ForeignManifest:
        """Parse a manifest. Raises InvalidImage if it isn't an image or artifact manifest."""
        # Schema 1 lists no sizes and its layers carry no types, so its files could not be planned.
        if str(document.get("mediaType", "")).startswith(_SIGNED_V1) or "fsLayers" in document:
            raise InvalidImage(
                "the image has a manifest of Docker's schema 1",
                hint="Push it again with Docker 1.10 or newer.",
            )
        config = Descriptor.from_json(document.get("config"))
        layers = tuple(descriptors(document, "layers", what="the image's manifest"))
        if not layers:
            raise InvalidImage("the image has no layers")
        artifact_type = document.get("artifactType")
        kind = _kind(config, layers, artifact_type if isinstance(artifact_type, str) else "")
        annotations = document.get("annotations")
        return cls(kind, config, layers, annotations if isinstance(annotations, Mapping) else {})


def _kind(config: Descriptor, layers: tuple[Descriptor, ...], artifact_type: str) -> ImageFormat:
    named = (artifact_type, config.kind)
    for kind, prefixes in _NAMED:
        if any(name.startswith(prefixes) for name in named):
            return kind
    for kind, prefixes in _BY_LAYERS:
        if any(layer.kind.startswith(prefixes) for layer in layers):
            return kind
    # With an artifactType, the image config is only a placeholder.
    if config.kind in _IMAGE_CONFIGS and not artifact_type:
        return ImageFormat.IMAGE
    if all(layer.kind.startswith(IMAGE_LAYER_PREFIXES) for layer in layers):
        # oras stores a pushed directory in such a layer, with its name as title.
        titled = any(mediatypes.ANNOTATION_TITLE in layer.annotations for layer in layers)
        return ImageFormat.ARTIFACT if titled else ImageFormat.IMAGE
    return ImageFormat.ARTIFACT
