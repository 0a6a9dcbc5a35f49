"""`weightyard diff`: compares two images by their records and measured quality."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import click

from builder.quality_report import published_quality, quality_text
from modelimage.access import Access, open_reader
from modelimage.digest import Digest
from modelimage.errors import InvalidInput
from modelimage.foreign import describe_foreign, resolve_ours
from modelimage.image_diff import Difference, compare
from modelimage.record import Record, RecordLayer, Role
from modelimage.reference import LayoutReference, RegistryReference, parse_image
from quantize.quality import Quality
from weightyard.console import Console, format_table, pass_console
from weightyard.options import access_options
from weightyard.text import format_bytes, plural


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
    before = _resolve(first, variant, access)
    after = _resolve(second, variant_b or variant, access)
    found = compare(before.record, after.record)
    document = {
        "first": before.to_json(),
        "second": after.to_json(),
        "files": [
            {"path": f.path, "change": f.change.value, "before": f.before, "after": f.after}
            for f in found.files
        ],
        "layers": [{"digest": str(each.digest), "size": each.size} for each in found.layers],
        "moved": found.moved_bytes,
        "shared": found.shared_bytes,
    }
    text = _text(found)
    if before.quality or after.quality:
        text += f"\n\nquality before  {_measured(before.quality)}"
        text += f"\nquality after   {_measured(after.quality)}"
    console.result(document, text)


@dataclass(frozen=True, slots=True)
class _Side:
    image: str
    key: Digest
    record: Record
    quality: Quality | None = None

    def to_json(self) -> dict[str, Any]:
        measured = self.quality.to_json() if self.quality else None
        return {"image": self.image, "key": str(self.key), "quality": measured}


def _resolve(image: str, variant: str | None, access: Access) -> _Side:
    reference = parse_image(image)
    if not isinstance(reference, RegistryReference | LayoutReference):
        raise InvalidInput(
            f"can't compare {reference}", hint="Use oci:DIR:TAG or a registry reference."
        )
    reader = open_reader(reference, access)
    root = reader.resolve(reference.name)
    model = resolve_ours(reader, root, variant)
    if model is not None:
        return _Side(image, model.key, model.record, published_quality(reader, model))
    foreign = describe_foreign(reader, root)
    if foreign.record is None:
        raise InvalidInput(
            f"{image} was not built by weightyard, so the digests of its files are unknown before a pull",
            hint="`weightyard inspect` shows what it holds.",
        )
    # An update moves the layers that this image has now, not those that its record names.
    layers = (RecordLayer(e.digest, e.descriptor.size, Role.WEIGHT) for e in foreign.layers)
    return _Side(image, foreign.key, replace(foreign.record, layers=tuple(layers)))


def _measured(quality: Quality | None) -> str:
    return quality_text(quality) if quality else "not measured"


def _text(found: Difference) -> str:
    moved = (
        f"An update moves {format_bytes(found.moved_bytes)} in {plural(len(found.layers), 'layer')}; "
        f"{format_bytes(found.shared_bytes)} are shared."
    )
    if not found.files:
        return f"All files are the same. {moved}"
    rows = [(f.change.value, f.path, _size(f.before), _size(f.after)) for f in found.files]
    return format_table(["change", "file", "before", "after"], rows) + f"\n\n{moved}"


def _size(size: int | None) -> str | None:
    return None if size is None else format_bytes(size)
