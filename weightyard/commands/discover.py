"""`weightyard discover`: lists the artifacts attached to an image, and downloads their files."""

from __future__ import annotations

from pathlib import Path

import click

from modelimage import durable
from modelimage.access import Access, ImageRepository, open_image_repository
from modelimage.descriptor import Descriptor
from modelimage.errors import InvalidInput, WeightyardError
from modelimage.path_rules import check_path
from modelimage.push import read_tree
from modelimage.reference import LayoutReference, RegistryReference, parse_image
from modelimage.referrers import UNSOUND, list_referrers, read_artifact
from weightyard.console import Console, pass_console
from weightyard.options import PathName, access_options


@click.command(
    epilog="""\b
Examples:
  weightyard discover registry.example/team/model:v1
  weightyard discover registry.example/team/model:v1 --type application/vnd.cyclonedx+json --to ./sboms
"""
)
@click.argument("image")
@click.option(
    "--type", "artifact_type", metavar="MEDIATYPE", help="List artifacts of this type only."
)
@click.option(
    "--to",
    "directory",
    type=PathName(file_okay=False),
    help="Also fetch their files into this directory, one subdirectory each.",
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
            f"can't list the artifacts of {reference}",
            hint="Use oci:DIR:TAG or a registry reference.",
        )
    place = open_image_repository(reference, access)
    tree = read_tree(place, place.resolve(reference.name))
    left_out: list[WeightyardError] = []
    found = [
        (document.descriptor, artifact)
        for document in reversed(tree.manifests)
        for artifact in list_referrers(place, document.descriptor, artifact_type, left_out.append)
    ]
    if directory is not None:
        for _, artifact in found:
            # Anyone who may push can attach: one malformed artifact mustn't keep the others away.
            try:
                _fetch(place, artifact, directory / artifact.digest.hex)
            except UNSOUND as error:
                left_out.append(error)
    document = [
        {
            "type": artifact.artifact_type,
            "digest": str(artifact.digest),
            "about": str(subject.digest),
            "annotations": dict(artifact.annotations),
        }
        for subject, artifact in found
    ]
    rows = [(each["type"], each["digest"], each["about"]) for each in document]
    console.table(
        ["type", "digest", "about"],
        rows,
        empty=f"nothing {'readable ' if left_out else ''}is attached to {image}",
        document=document,
    )
    for other in left_out[1:]:
        console.say(other.message)
    if left_out:
        raise left_out[0]


def _fetch(place: ImageRepository, artifact: Descriptor, folder: Path) -> None:
    for file in read_artifact(place, artifact):
        # Artifacts are untrusted input: their file names must not leave the folder.
        path = folder / check_path(file.name)
        with durable.writing(path):
            durable.make_directories(path.parent)
            durable.write_file(path, file.data)
