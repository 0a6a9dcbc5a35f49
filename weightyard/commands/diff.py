"""`weightyard diff`: what differs between two images, from their records alone."""

from __future__ import annotations

import click

from modelimage.access import Access, open_reader
from modelimage.compare import Difference, compare
from modelimage.errors import InvalidInput
from modelimage.reference import LayoutReference, RegistryReference, parse_image
from modelimage.resolve import ResolvedModel, resolve_model
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
@click.option("--variant", metavar="NAME", help="Which variant of both images.")
@click.option("--variant-b", metavar="NAME", help="Which variant of the second, if another.")
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
    """Show which files and layers differ between two images, and how many bytes an update moves."""
    before = _resolve(first, variant, access)
    after = _resolve(second, variant_b or variant, access)
    found = compare(before.record, after.record)
    document = {
        "first": {"image": first, "key": str(before.key)},
        "second": {"image": second, "key": str(after.key)},
        "files": [
            {"path": f.path, "change": f.change.value, "before": f.before, "after": f.after}
            for f in found.files
        ],
        "layers": [{"digest": str(each.digest), "size": each.size} for each in found.layers],
        "moved": found.moved_bytes,
        "shared": found.shared_bytes,
    }
    console.result(document, _text(found))


def _resolve(image: str, variant: str | None, access: Access) -> ResolvedModel:
    reference = parse_image(image)
    if not isinstance(reference, RegistryReference | LayoutReference):
        raise InvalidInput(
            f"can't compare {reference}", hint="Use oci:DIR:TAG or a registry reference."
        )
    return resolve_model(open_reader(reference, access), reference.name, variant)


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
