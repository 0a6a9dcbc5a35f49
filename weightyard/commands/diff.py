"""`weightyard diff`: compares two images by their records and measured quality."""

from __future__ import annotations

from typing import Any

import click

from builder.quality_report import published_quality, quality_text
from modelimage.access import Access, open_reader
from modelimage.errors import InvalidInput
from modelimage.image_diff import Difference, compare
from modelimage.reference import LayoutReference, RegistryReference, parse_image
from modelimage.resolve import ResolvedModel, resolve_model
from quantize.quality import Quality
from weightyard.console import Console, format_table, pass_console
from weightyard.options import access_options
from weightyard.text import format_bytes


@click.command(
    epilog="""\b
Examples:
  weightyard diff registry.example/team/model:v1 registry.example/team/model:v2
  weightyard diff oci:./out:v1 oci:./out:v1 --variant-b int4
"""
)
@click.argument("first")
@click.argument("second")
@click.option("--variant", metavar="NAME", help="Variant of both images.")
@click.option("--variant-b", metavar="NAME", help="Variant of the second image, if it differs.")
@access_options
@pass_console
def diff(
    console: Console,
    /,
    *,
    first: str,
    second: str,
    variant: str | None,
    variant_b: str | None,
    access: Access,
) -> None:
    """Show which files and layers differ between two images, and how many bytes an update transfers.

    For quantized variants, also the measured quality of both.
    """
    before, quality_before = _resolve(first, variant, access)
    after, quality_after = _resolve(second, variant_b or variant, access)
    found = compare(before.record, after.record)
    document = {
        "first": _side(first, before, quality_before),
        "second": _side(second, after, quality_after),
        "files": [
            {"path": f.path, "change": f.change.value, "before": f.before, "after": f.after}
            for f in found.files
        ],
        "layers": [{"digest": str(each.digest), "size": each.size} for each in found.layers],
        "moved": found.moved_bytes,
        "shared": found.shared_bytes,
    }
    text = _text(found)
    if quality_before or quality_after:
        text += f"\n\nquality before  {_measured(quality_before)}"
        text += f"\nquality after   {_measured(quality_after)}"
    console.result(document, text)


def _resolve(
    image: str, variant: str | None, access: Access
) -> tuple[ResolvedModel, Quality | None]:
    reference = parse_image(image)
    if not isinstance(reference, RegistryReference | LayoutReference):
        raise InvalidInput(
            f"can't compare {reference}", hint="Use oci:DIR:TAG or a registry reference."
        )
    reader = open_reader(reference, access)
    model = resolve_model(reader, reference.name, variant)
    return model, published_quality(reader, model)


def _side(image: str, model: ResolvedModel, quality: Quality | None) -> dict[str, Any]:
    measured = quality.to_json() if quality else None
    return {"image": image, "key": str(model.key), "quality": measured}


def _measured(quality: Quality | None) -> str:
    return quality_text(quality) if quality else "not measured"


def _text(found: Difference) -> str:
    moved = (
        f"An update moves {format_bytes(found.moved_bytes)} in {len(found.layers)} layers; "
        f"{format_bytes(found.shared_bytes)} are shared."
    )
    if not found.files:
        return f"All files are the same. {moved}"
    rows = [(f.change.value, f.path, _size(f.before), _size(f.after)) for f in found.files]
    return format_table(["change", "file", "before", "after"], rows) + f"\n\n{moved}"


def _size(size: int | None) -> str | None:
    return None if size is None else format_bytes(size)
