"""`weightyard inspect`: shows an image's contents from its manifests and record; reads no weights."""

from __future__ import annotations

import json
from typing import Any

import click

from builder.quality_report import published_quality, quality_text
from modelimage.access import Access, open_image_repository
from modelimage.errors import InvalidInput
from modelimage.foreign import AS_PUBLISHED, describe_foreign, resolve_ours
from modelimage.record import Record
from modelimage.reference import EngineReference, parse_image
from modelimage.resolve import ResolvedModel, unknown_variant
from quantize.quality import Quality
from weightyard.console import Console, format_table, pass_console
from weightyard.foreign import foreign_document, foreign_text, record_rows
from weightyard.options import access_options
from weightyard.text import format_bytes, plural


@click.command(
    epilog="""\b
Examples:
  weightyard inspect oci:./out:v1
  weightyard inspect registry.example/team/model:v1 --variant int4 --files
"""
)
@click.argument("image")
@click.option("--variant", metavar="NAME", help="Variant to show; by default the image's own.")
@click.option("--files", is_flag=True, help="List the files with their sha256.")
@access_options
@pass_console
def inspect(
    console: Console, /, *, image: str, variant: str | None, files: bool, access: Access
) -> None:
    """Show what a model image holds: source, licence, size, memory needed, variants.

    Only manifests and the record are fetched; of a foreign image, the headers of its layers.
    """
    reference = parse_image(image)
    if isinstance(reference, EngineReference):
        raise InvalidInput(
            f"can't inspect {reference}", hint="Use oci:DIR:TAG or a registry reference."
        )
    reader = open_image_repository(reference, access)
    root = reader.resolve(reference.name)
    model = resolve_ours(reader, root, variant)
    if model is None:
        foreign = describe_foreign(reader, root)
        held = foreign.record.variant if foreign.record else AS_PUBLISHED
        if variant not in (None, AS_PUBLISHED, held):
            raise unknown_variant(str(variant), [held])
        console.result(foreign_document(image, foreign), foreign_text(image, foreign, files=files))
        return
    quality = published_quality(reader, model)
    text = _text(image, model, quality)
    if files:
        text += "\n\n" + _file_table(model.record)
    console.result(_document(image, model, quality), text)


def _document(image: str, model: ResolvedModel, quality: Quality | None) -> dict[str, Any]:
    return {
        "image": image,
        "digest": str(model.root.digest),
        "manifest": str(model.manifest.digest),
        "key": str(model.key),
        "variants": list(model.variants),
        "record": json.loads(model.record.to_bytes()),
        "quality": quality.to_json() if quality else None,
    }


def _text(image: str, model: ResolvedModel, quality: Quality | None) -> str:
    record = model.record
    others = [name for name in model.variants if name != record.variant]
    rows: list[tuple[str, str]] = [
        ("image", image),
        ("digest", str(model.root.digest)),
        ("model key", str(model.key)),
        ("variant", record.variant + (f" (also: {', '.join(others)})" if others else "")),
        *record_rows(record),
        *([("quality", quality_text(quality))] if quality else []),
        (
            "size",
            f"{format_bytes(record.size)} in {plural(len(record.files), 'file')}, "
            f"{plural(len(record.layers), 'layer')}",
        ),
    ]  # fmt: skip
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in rows)


def _file_table(record: Record) -> str:
    rows = [(f.path, format_bytes(f.size), f.role.value, f.digest.hex) for f in record.files]
    return format_table(["file", "size", "role", "sha256"], rows)
