"""Detects the kind of a foreign manifest. Pure: parsed document to ForeignManifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from modelimage import mediatypes
from modelimage.descriptor import Descriptor
from modelimage.errors import InvalidImage
from modelimage.foreign.model import ImageFormat

# CNAI was ModelPack's name before it moved to the CNCF.
MODELPACK_PREFIXES: Final = ("application/vnd.cncf.model.", "application/vnd.cnai.model.")
KITOPS_PREFIX: Final = "application/vnd.kitops.modelkit."
DOCKER_MODEL_PREFIX: Final = "application/vnd.docker.ai."
IMAGE_LAYER_PREFIXES: Final = (
    "application/vnd.oci.image.layer.",
    "application/vnd.docker.image.rootfs.",
)
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
        """Parse a manifest. Raises InvalidImage if it is no image or artifact manifest."""
        layers = document.get("layers")
        if str(document.get("mediaType", "")).startswith(_SIGNED_V1) or "fsLayers" in document:
            raise InvalidImage(
                "the image has a manifest of Docker's schema 1",
                hint="Push it again with a tool of this decade.",
            )
        if not isinstance(layers, list) or "config" not in document:
            raise InvalidImage("malformed manifest: no config, or no list of layers")
        config = Descriptor.from_json(document["config"])
        parsed = tuple(Descriptor.from_json(layer) for layer in layers)
        if not parsed:
            raise InvalidImage("the image has no layers")
        artifact_type = document.get("artifactType")
        kind = _kind(config, parsed, artifact_type if isinstance(artifact_type, str) else "")
        annotations = document.get("annotations")
        return cls(kind, config, parsed, annotations if isinstance(annotations, Mapping) else {})


def _kind(config: Descriptor, layers: tuple[Descriptor, ...], artifact_type: str) -> ImageFormat:
    named = (artifact_type, config.media_type)
    # The specific formats first: they all use layers and configs that also look like an image's or an artifact's.
    if any(name.startswith(MODELPACK_PREFIXES) for name in named):
        return ImageFormat.MODELPACK
    if any(name.startswith(KITOPS_PREFIX) for name in named):
        return ImageFormat.KITOPS
    if any(name.startswith(DOCKER_MODEL_PREFIX) for name in named):
        return ImageFormat.DOCKER_MODEL
    # With an artifactType, the image config is only a placeholder.
    if config.media_type in _IMAGE_CONFIGS and not artifact_type:
        return ImageFormat.IMAGE
    if all(layer.media_type.startswith(IMAGE_LAYER_PREFIXES) for layer in layers):
        # oras stores a pushed directory in such a layer, with its name as title.
        titled = any(mediatypes.ANNOTATION_TITLE in layer.annotations for layer in layers)
        return ImageFormat.ARTIFACT if titled else ImageFormat.IMAGE
    return ImageFormat.ARTIFACT
