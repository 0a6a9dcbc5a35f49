"""ModelPack (modelpack/model-spec v0.0.7 and earlier, including its older name CNAI): one file or tar per layer. Pure.

v0.0.7 writes `diffIds`, v0.0.6 wrote `diff_ids`. Docker's model runner wrote raw layers with media types ending in
`.gguf` and `.safetensors`; they are handled alike. Data sets are left out: no inference server reads them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from modelimage.descriptor import Descriptor
from modelimage.digest import Digest
from modelimage.errors import InvalidImage
from modelimage.foreign.detect import ForeignManifest
from modelimage.foreign.layer_values import (
    Mapped,
    diff_ids,
    filepath,
    raw_layer,
    tar_layer,
    tar_packing,
    unique,
)
from modelimage.foreign.model import ForeignLayer
from modelimage.record import Role

_TYPE = re.compile(
    r"application/vnd\.(?:cncf|cnai)\.model\.(weight\.config|weight|doc|code|dataset)\.v1\.(.+)"
)
_RAW: Final = frozenset({"raw", "gguf", "safetensors"})
# Tokenizers have the type weight.config: their role is determined by name.
_ROLES: Final = {"weight": Role.WEIGHT, "doc": Role.DOC, "code": Role.CODE}


def map_modelpack(manifest: ForeignManifest, config: Mapping[str, Any]) -> Mapped:
    """Map ModelPack layers to files. Raises InvalidImage for a layer of another format."""
    known = diff_ids(config.get("modelfs"), ("diffIds", "diff_ids"), len(manifest.layers))
    layers: list[ForeignLayer] = []
    left_out: dict[str, str] = {}
    for descriptor, diff_id in zip(manifest.layers, known, strict=True):
        found = _TYPE.fullmatch(descriptor.kind)
        if found is None:
            raise InvalidImage(f"not a ModelPack layer: {descriptor.media_type!r}")
        if found[1] == "dataset":
            left_out[filepath(descriptor) or str(descriptor.digest)] = "a data set"
            continue
        layers.append(_layer(descriptor, found[1], found[2], diff_id))
    return Mapped(unique(layers), left_out)


def _layer(
    descriptor: Descriptor, content: str, packing: str, diff_id: Digest | None
) -> ForeignLayer:
    role = _ROLES.get(content)
    tar = tar_packing(descriptor.kind)
    if tar is not None:
        return tar_layer(descriptor, tar, role=role, diff_id=diff_id)
    path = filepath(descriptor)
    if packing not in _RAW:
        raise InvalidImage(f"unsupported ModelPack layer: {descriptor.media_type!r}")
    if path is None:
        raise InvalidImage(
            f"raw layer {descriptor.digest} has no path",
            hint="Pack the model again with a tool that writes org.cncf.model.filepath.",
        )
    return raw_layer(descriptor, path, role, diff_id)
