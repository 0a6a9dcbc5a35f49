"""Container images in Docker's and OCI's format: overlaid tars, plain, gzip or zstd. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelimage.errors import InvalidImage
from modelimage.foreign.detect import IMAGE_LAYER_PREFIXES, ForeignManifest
from modelimage.foreign.layer_values import Mapped, diff_ids, tar_layer, tar_packing


def map_image(manifest: ForeignManifest, config: Mapping[str, Any]) -> Mapped:
    """Map an image's layers. Raises InvalidImage for a layer that no runtime would unpack."""
    known = diff_ids(config.get("rootfs"), ("diff_ids",), len(manifest.layers))
    layers = []
    for descriptor, diff_id in zip(manifest.layers, known, strict=True):
        packing = tar_packing(descriptor.kind)
        if packing is None or not descriptor.kind.startswith(IMAGE_LAYER_PREFIXES):
            raise InvalidImage(f"not a layer of a container image: {descriptor.media_type!r}")
        layers.append(tar_layer(descriptor, packing, diff_id=diff_id))
    # Repeated layers are kept: a repetition covers again what the layers between added.
    return Mapped(tuple(layers), {})
