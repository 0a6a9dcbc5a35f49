"""`weightyard discover`: lists what is attached to an image, and fetches it."""

from __future__ import annotations

from pathlib import Path

import click

from modelimage import durable
from modelimage.access import Access, Place, open_place
from modelimage.descriptor import Descriptor
from modelimage.errors import InvalidInput
from modelimage.paths import check_path
from modelimage.push import read_tree
from modelimage.reference import LayoutReference, RegistryReference, parse_image
from modelimage.referrers import list_referrers, read_artifact
from weightyard.console import Console, pass_console
from weightyard.options import access_options
from weightyard.text import format_bytes


@click.command(
    epilog="""\b
Examples:
  weightyard discover registry.example/team/model:v1
  weightyard discover registry.example/team/model:v1 --type application/vnd.cyclonedx+json --to ./sboms
"""
)
@click.argument("image")
@click.option("--type", "artifact_type", metavar="MEDIATYPE", help="Only artifacts of this type.")
@click.option(
    "--to",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="Also fetch their files into this directory, one folder each.",
)
@access_options
@pass_console
def discover(
    console: Console,
    /,
    *,
    image: str,
    artifact_type: str | None,
    directory: Path | None,
    access: Access,
) -> None:
    """List the artifacts about an image and its manifests: SBOMs, quality reports, signatures."""
    reference = parse_image(image)
    if not isinstance(reference, RegistryReference | LayoutReference):
        raise InvalidInput(
            f"can't look into {reference}", hint="Use oci:DIR:TAG or a registry reference."
        )
    place = open_place(reference, access)
    tree = read_tree(place, place.resolve(reference.name))
    rows = []
    for document in reversed(tree.manifests):
        subject = document.descriptor
        for found in list_referrers(place, subject, artifact_type):
            rows.append(
                (found.artifact_type, found.digest, format_bytes(found.size), subject.digest)
            )
            if directory is not None:
                _fetch(place, found, directory / found.digest.hex)
    console.table(["type", "digest", "size", "about"], rows)


def _fetch(place: Place, artifact: Descriptor, folder: Path) -> None:
    for file in read_artifact(place, artifact):
        # An artifact is a stranger's: its names may not leave the folder.
        path = folder / check_path(file.name)
        with durable.writing(path):
            durable.make_directories(path.parent)
            durable.write_file(path, file.data)
