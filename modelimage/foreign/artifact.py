"""Files pushed one by one as an OCI artifact, as oras does: each layer a file, named by its title. Pure.

A directory is a gzipped tar. The oras command says so in the annotation `io.deis.oras.content.unpack` and writes
whole paths into it; the Python client says so by the media type, and writes paths below the directory's parent. No
other media type means anything here: oras says `image.layer.v1.tar` of any file whose type it wasn't told.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from modelimage.foreign.detect import ForeignManifest
from modelimage.foreign.model import ForeignLayer, Packing
from modelimage.foreign.packing import Mapped, filepath, raw_layer, tar_layer, unique

_UNPACK: Final = "io.deis.oras.content.unpack"
_DIRECTORY: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
_ARCHIVES: Final = (".gz", ".tgz")


def map_artifact(manifest: ForeignManifest, config: Mapping[str, Any]) -> Mapped:
    """Raises InvalidImage for an unsafe name."""
    layers: list[ForeignLayer] = []
    left_out: dict[str, str] = {}
    for descriptor in manifest.layers:
        path = filepath(descriptor)
        if descriptor.annotations.get(_UNPACK) == "true":
            layers.append(tar_layer(descriptor, Packing.TAR_GZIP))
        elif path and descriptor.media_type == _DIRECTORY and not path.endswith(_ARCHIVES):
            parent = path.rpartition("/")[0]
            layers.append(tar_layer(descriptor, Packing.TAR_GZIP, path=parent))
        elif path is None:
            left_out[str(descriptor.digest)] = f"a {descriptor.media_type} without a file name"
        else:
            layers.append(raw_layer(descriptor, path))
    return Mapped(unique(layers), left_out)
