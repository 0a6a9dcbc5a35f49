"""KitOps modelkits: a tar or tar+gzip for each entry of the Kitfile, which is the config. Pure.

Current kits have full paths in their tars and each layer's digest in the Kitfile. Older ones don't, and have paths
relative to the parent of the entry's path (KitOps, pkg/cmd/unpack). Data sets are left out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from modelimage.descriptor import Descriptor
from modelimage.errors import InvalidImage
from modelimage.foreign.detect import ForeignManifest
from modelimage.foreign.layer_values import Mapped, parse_digest, tar_layer, tar_packing
from modelimage.foreign.model import ForeignLayer
from modelimage.record import Role

_TYPE = re.compile(r"application/vnd\.kitops\.modelkit\.(\w+)\.v1\.tar(?:\+\w+)?")
# The layer type of a data set is `dataset`, its list in the Kitfile `datasets`.
_LISTS: Final = {"code": "code", "dataset": "datasets", "docs": "docs", "prompt": "prompts"}
_ROLES: Final = {"model": Role.WEIGHT, "docs": Role.DOC, "code": Role.CODE}


def map_kitops(manifest: ForeignManifest, config: Mapping[str, Any]) -> Mapped:
    """Map a modelkit's layers. Raises InvalidImage."""
    seen: Counter[str] = Counter()
    layers: list[ForeignLayer] = []
    left_out: dict[str, str] = {}
    for descriptor in manifest.layers:
        found = _TYPE.fullmatch(descriptor.kind)
        if found is None:
            raise InvalidImage(f"not a layer of a ModelKit: {descriptor.media_type!r}")
        content = found[1]
        entry = _entry(config, content, seen[content])
        seen[content] += 1
        if content == "dataset":
            left_out[str(entry.get("path") or descriptor.digest)] = "a data set"
        else:
            layers.append(_layer(descriptor, content, entry))
    # Such a kit refers to another kit for its model, which isn't fetched.
    if not seen["model"] and not seen["modelpart"] and _model(config).get("path"):
        left_out["model"] = (
            f"the ModelKit takes its model from another ModelKit: {_model(config)['path']!r:.200}"
        )
    return Mapped(tuple(layers), left_out)


def _layer(descriptor: Descriptor, content: str, entry: Mapping[str, Any]) -> ForeignLayer:
    packing = tar_packing(descriptor.kind)
    if packing is None:
        raise InvalidImage(f"unsupported layer of a ModelKit: {descriptor.media_type!r}")
    stated = entry.get("digest")
    # Entries are matched to layers by their order; a stated digest shows whether the match is right.
    if stated and stated != str(descriptor.digest):
        raise InvalidImage(f"the Kitfile says {stated!r:.80} of layer {descriptor.digest}")
    diff_id = parse_digest(entry["diffId"]) if entry.get("diffId") else None
    path = "" if stated else _parent(str(entry.get("path") or ""))
    return tar_layer(descriptor, packing, path=path, role=_ROLES.get(content), diff_id=diff_id)


def _entry(config: Mapping[str, Any], content: str, number: int) -> Mapping[str, Any]:
    """The Kitfile's entry for a layer: the n-th of the layer's type."""
    if content == "model":
        return _model(config)
    listed = (
        _model(config).get("parts")
        if content == "modelpart"
        else config.get(_LISTS.get(content, ""))
    )
    entry = listed[number] if isinstance(listed, list) and number < len(listed) else None
    if isinstance(entry, Mapping):
        return entry
    raise InvalidImage(f"the Kitfile has no entry for layer {number + 1} of type {content!r}")


def _model(config: Mapping[str, Any]) -> Mapping[str, Any]:
    model = config.get("model")
    return model if isinstance(model, Mapping) else {}


def _parent(path: str) -> str:
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return "/".join(parts[:-1])
