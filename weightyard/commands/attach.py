"""`weightyard attach`: stores small files about an image beside it."""

from __future__ import annotations

import mimetypes
from pathlib import Path

import click

from modelimage import durable
from modelimage.access import Access, open_image_repository
from modelimage.errors import InvalidInput
from modelimage.reference import LayoutReference, RegistryReference, parse_image
from modelimage.referrers import (
    MAX_FILE_BYTES,
    ArtifactFile,
    make_artifact,
)
from modelimage.referrers import (
    attach as attach_artifact,
)
from weightyard.console import Console, pass_console
from weightyard.options import PathName, access_options


@click.command(
    epilog="""\b
Examples:
  weightyard attach registry.example/team/model:v1 sbom.cdx.json --type application/vnd.cyclonedx+json
  weightyard attach oci:./out:v1 report.md --type application/vnd.example.report -a author=evals
"""
)
@click.argument("image")
@click.argument("files", nargs=-1, required=True, type=PathName(exists=True, dir_okay=False))
@click.option(
    "--type", "artifact_type", required=True, metavar="MEDIATYPE", help="Media type of the files."
)
@click.option(
    "-a", "--annotation", "annotations", multiple=True, metavar="KEY=VALUE", help="Repeatable."
)
@access_options
@pass_console
def attach(
    console: Console,
    /,
    *,
    image: str,
    files: tuple[Path, ...],
    artifact_type: str,
    annotations: tuple[str, ...],
    access: Access,
) -> None:
    """Attach small files, such as an SBOM or a report, to an image.

    They form an artifact of their own that refers to the image; the image and its digest don't change.
    """
    reference = parse_image(image)
    if not isinstance(reference, RegistryReference | LayoutReference):
        raise InvalidInput(
            f"can't attach to {reference}", hint="Use oci:DIR:TAG or a registry reference."
        )
    place = open_image_repository(reference, access)
    subject = place.resolve(reference.name)
    artifact = make_artifact(
        subject, artifact_type, [_read(path) for path in files], _annotations(annotations)
    )
    attach_artifact(place, artifact)
    digest = str(artifact.manifest.descriptor.digest)
    document = {"image": image, "subject": str(subject.digest), "digest": digest}
    console.result(document, f"Attached {digest}\nto {subject.digest}")


def _read(path: Path) -> ArtifactFile:
    with durable.reading(path):
        # Checked before reading, since the whole file goes into memory.
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise InvalidInput(
                f"{path} has {size} bytes, too many to attach",
                hint=f"Attach files of at most {MAX_FILE_BYTES} bytes.",
            )
        data = path.read_bytes()
    media_type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return ArtifactFile(path.name, media_type, data)


def _annotations(given: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise InvalidInput(f"not an annotation: {text!r}", hint="Write KEY=VALUE.")
        found[key] = value
    return found
