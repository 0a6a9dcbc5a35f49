"""Files pushed one by one as an OCI artifact, as oras does: each layer is a file named by its title. Pure.

A directory is a gzipped tar. The oras command marks it with the annotation `io.deis.oras.content.unpack` and uses
complete paths in it; the Python client marks it with the media type, and uses paths below the directory's parent. Other
media types have no meaning here: oras uses `image.layer.v1.tar` for any file without a stated type.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from modelimage.foreign.detect import ForeignManifest
from modelimage.foreign.layer_values import Mapped, filepath, raw_layer, tar_layer, unique
from modelimage.foreign.model import ForeignLayer, Packing

_UNPACK: Final = "io.deis.oras.content.unpack"
_DIRECTORY: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
_ARCHIVES: Final = (".gz", ".tgz")


def map_artifact(manifest: ForeignManifest, config: Mapping[str, Any]) -> Mapped:
    """Map an artifact's layers to files. Raises InvalidImage for an unsafe name."""
    layers: list[ForeignLayer] = []
    left_out: dict[str, str] = {}
    for descriptor in manifest.layers:
        path = filepath(descriptor)
        if descriptor.annotations.get(_UNPACK) == "true":
            layers.append(tar_layer(descriptor, Packing.TAR_GZIP))
        # A pushed directory has an image layer's media type, as does an archive pushed as a file. Its name decides.
        elif path and descriptor.kind == _DIRECTORY and not path.endswith(_ARCHIVES):
            parent = path.rpartition("/")[0]
            layers.append(tar_layer(descriptor, Packing.TAR_GZIP, path=parent))
        elif path is None:
            left_out[str(descriptor.digest)] = f"a {descriptor.kind} without a file name"
        else:
            layers.append(raw_layer(descriptor, path))
    return Mapped(unique(layers), left_out)
