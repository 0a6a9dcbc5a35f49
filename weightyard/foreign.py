"""Describes an image in a foreign format, as text and as JSON, without reading its layers."""

from __future__ import annotations

from typing import Any

from modelimage.foreign import ForeignModel
from weightyard.text import format_bytes


def foreign_document(image: str, model: ForeignModel) -> dict[str, Any]:
    """The output of `inspect --json`. `files` is None while compressed layers are unread."""
    return {
        "image": image,
        "digest": str(model.root.digest),
        "manifest": str(model.manifest.digest),
        "key": str(model.key),
        "kind": model.kind.value,
        "layers": [
            {
                "digest": str(layer.digest),
                "size": layer.descriptor.size,
                "mediaType": layer.descriptor.media_type,
                "packing": layer.packing.value,
            }
            for layer in model.layers
        ],
        "files": [
            {
                "path": file.path,
                "size": file.size,
                "role": file.role.value,
                "layer": str(file.layer),
            }
            for file in model.files
        ]
        if model.is_listed
        else None,
        "leftOut": dict(model.left_out),
    }


def foreign_text(image: str, model: ForeignModel, *, files: bool) -> str:
    """The output of `inspect`."""
    packed = sum(layer.descriptor.size for layer in model.layers)
    held = (
        f"{format_bytes(model.size)} in {len(model.files)} files"
        if model.is_listed
        else "known after its compressed layers are read"
    )
    rows = [
        ("image", image),
        ("digest", str(model.root.digest)),
        ("model key", str(model.key)),
        ("kind", f"{model.kind.value}, not built by weightyard: no record, no chunk digests"),
        ("layers", f"{len(model.layers)}, {format_bytes(packed)}: {_packings(model)}"),
        ("files", held),
        *(("left out", f"{name}: {why}") for name, why in model.left_out.items()),
    ]
    if files:
        rows += [("file", f"{each.path}, {format_bytes(each.size)}") for each in model.files]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in rows)


def _packings(model: ForeignModel) -> str:
    return ", ".join(dict.fromkeys(layer.packing.value for layer in model.layers))
