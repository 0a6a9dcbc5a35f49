"""Docker's model artifacts (`docker model`, docker/model-runner): a raw file per layer, and some tars. Pure.

Version 0.2 names every file in an annotation; version 0.1 uses the model runner's fixed names, which are listed here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from modelimage.descriptor import Descriptor
from modelimage.errors import InvalidImage
from modelimage.foreign.detect import DOCKER_MODEL_PREFIX, ForeignManifest
from modelimage.foreign.layer_values import (
    Mapped,
    diff_ids,
    filepath,
    numbered,
    raw_layer,
    tar_layer,
    unique,
)
from modelimage.foreign.model import ForeignLayer, Packing
from modelimage.record import Role

_TARS: Final = frozenset({"vllm.config.tar", "dir.tar"})
# Type -> file name if it is the only layer of its type, and role.
_FILES: Final = {
    "gguf.v3": ("model.gguf", Role.WEIGHT),
    "gguf.v3.lora": ("adapter.gguf", Role.WEIGHT),
    "safetensors": ("model.safetensors", Role.WEIGHT),
    "dduf": ("model.dduf", Role.WEIGHT),
    "mmproj": ("model.mmproj", Role.WEIGHT),
    "chat.template.jinja": ("template.jinja", Role.TOKENIZER),
    "license": ("LICENSE", Role.DOC),
}
_FILE: Final = "model.file"


def map_docker_model(manifest: ForeignManifest, config: Mapping[str, Any]) -> Mapped:
    """Map an artifact's layers to files. Raises InvalidImage for a layer of unknown type."""
    known = diff_ids(config.get("rootfs"), ("diff_ids",), len(manifest.layers))
    totals = Counter(layer.kind for layer in manifest.layers)
    seen: Counter[str] = Counter()
    layers: list[ForeignLayer] = []
    for descriptor, diff_id in zip(manifest.layers, known, strict=True):
        seen[descriptor.kind] += 1
        content = descriptor.kind.removeprefix(DOCKER_MODEL_PREFIX)
        if content in _TARS:
            layers.append(tar_layer(descriptor, Packing.TAR, diff_id=diff_id))
            continue
        name, role = _name(descriptor, content)
        total = totals[descriptor.kind]
        path = filepath(descriptor) or numbered(name, seen[descriptor.kind], total)
        layers.append(raw_layer(descriptor, path, role, diff_id))
    return Mapped(unique(layers), {})


def _name(descriptor: Descriptor, content: str) -> tuple[str, Role | None]:
    if content == _FILE:
        if filepath(descriptor) is None:
            raise InvalidImage(f"layer {descriptor.digest} of a Docker model has no path")
        return "", None
    if content not in _FILES:
        raise InvalidImage(f"not a layer of a Docker model: {descriptor.media_type!r}")
    return _FILES[content]
