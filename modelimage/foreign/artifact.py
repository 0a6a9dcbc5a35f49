"""Files pushed one by one as an OCI artifact, as oras does: each layer a file, named by its title. Pure.

A directory is a gzipped tar with the annotation `io.deis.oras.content.unpack`. The media types mean nothing here:
oras says `image.layer.v1.tar` of any file whose type it wasn't told.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from modelimage.foreign.detect import ForeignManifest
from modelimage.foreign.model import ForeignLayer, Packing
from modelimage.foreign.packing import Mapped, filepath, raw_layer, tar_layer, unique

_UNPACK: Final = "io.deis.oras.content.unpack"


def map_artifact(manifest: ForeignManifest, config: Mapping[str, Any]) -> Mapped:
    """Raises InvalidImage for an unsafe name."""
    layers: list[ForeignLayer] = []
    left_out: dict[str, str] = {}
    for descriptor in manifest.layers:
        path = filepath(descriptor)
        if descriptor.annotations.get(_UNPACK) == "true":
            layers.append(tar_layer(descriptor, Packing.TAR_GZIP))
        elif path is None:
            left_out[str(descriptor.digest)] = f"a {descriptor.media_type} without a file name"
        else:
            layers.append(raw_layer(descriptor, path))
    return Mapped(unique(layers), left_out)
