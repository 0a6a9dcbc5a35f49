"""Describes an image in a foreign format, as text and as JSON, without reading its layers; and what a record says."""

from __future__ import annotations

import json
from typing import Any

from modelimage.foreign import ForeignModel
from modelimage.record import Record
from weightyard.text import format_bytes, plural


def foreign_document(image: str, model: ForeignModel) -> dict[str, Any]:
    """The output of `inspect --json`. `files` is None while compressed layers are unread.

    `record` is there only in an image that another tool made from a weightyard image.
    """
    carried = {"record": json.loads(model.record.to_bytes())} if model.record else {}
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
        **carried,
    }


def foreign_text(image: str, model: ForeignModel, *, files: bool) -> str:
    """The output of `inspect`."""
    # As they are transferred, so compressed ones count with their compressed size.
    packed = sum(layer.descriptor.size for layer in model.layers)
    held = (
        f"{format_bytes(model.size)} in {plural(len(model.files), 'file')}"
        if model.is_listed
        else "known after its compressed layers are read"
    )
    rows = [
        ("image", image),
        ("digest", str(model.root.digest)),
        ("model key", str(model.key)),
        ("kind", f"{model.kind.value}, {_maker(model)}"),
        *(_record_claims(model.record) if model.record else []),
        ("layers", f"{len(model.layers)}, {format_bytes(packed)}: {_packings(model)}"),
        ("files", held),
        *(("left out", f"{name}: {why}") for name, why in model.left_out.items()),
    ]
    if files:
        rows += [("file", f"{each.path}, {format_bytes(each.size)}") for each in model.files]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in rows)


def record_rows(record: Record) -> list[tuple[str, str]]:
    """The rows of `inspect` on the model that a record describes."""
    facts = record.facts
    return [
        ("source", record.source + (f" at {record.revision}" if record.revision else "")),
        ("licence", record.license or "not stated"),
        ("architecture", facts.architecture or "unknown"),
        ("parameters", f"{facts.parameters:,}"),
        ("weights", f"{format_bytes(facts.weight_bytes)} of {facts.dtype or 'unknown type'}"),
        ("context", f"{facts.context_length:,} tokens" if facts.context_length else "unknown"),
        ("KV cache", f"{format_bytes(facts.kv_cache_bytes_per_token)} a token"),
        ("GPU memory", f"about {format_bytes(facts.gpu_memory_bytes)} to serve"),
        ("quantization", _quantization(record)),
    ]


def _maker(model: ForeignModel) -> str:
    if model.record is None:
        return "not built by weightyard: no record, no chunk digests"
    return "made by another tool from a weightyard image"


def _record_claims(record: Record) -> list[tuple[str, str]]:
    proof = "`weightyard verify` or a pull shows whether the files are still these"
    return [
        ("made from", f"{record.key}, {record.variant}; {proof}"),
        ("not proved", "who signed it: signatures of the original don't cover this image"),
        *record_rows(record),
    ]


def _quantization(record: Record) -> str:
    made = record.quantization
    if made is None:
        return "none: weights as published"
    group = f", groups of {made['groupSize']}" if made.get("groupSize") else ""
    needs = made.get("reproducible", "anywhere")
    again = f"; reproducible with {needs}" if needs != "anywhere" else ""
    return f"{made.get('scheme')} as {made.get('format')} by {made.get('engine')}{group}{again}"


def _packings(model: ForeignModel) -> str:
    return ", ".join(dict.fromkeys(layer.packing.value for layer in model.layers))
