"""`weightyard sign`: signs an image with a private key, offline, in cosign's format."""

from __future__ import annotations

import os
from pathlib import Path

import click

from modelimage import cosign, durable, keys
from modelimage.access import Access, open_image_repository
from modelimage.errors import InvalidInput
from modelimage.reference import DEFAULT_TAG, LayoutReference, RegistryReference, parse_image
from weightyard.console import Console, pass_console
from weightyard.options import PathName, access_options

PASSWORD_VARIABLE = "WEIGHTYARD_KEY_PASSWORD"  # noqa: S105 (the variable's name)


@click.command(
    epilog="""\b
Examples:
  openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out key.pem
  weightyard sign registry.example/team/model:v1 --key key.pem
  cosign verify --key key.pub --insecure-ignore-tlog registry.example/team/model:v1
"""
)
@click.argument("image")
@click.option(
    "--key",
    required=True,
    type=PathName(exists=True, dir_okay=False),
    help=f"The private key, PEM. The password of an encrypted one comes from {PASSWORD_VARIABLE}.",
)
@access_options
@pass_console
def sign(console: Console, /, *, image: str, key: Path, access: Access) -> None:
    """Sign an image with a private key.

    The signature covers the image's digest, and through it every manifest, layer and file. Each manifest in the image
    is signed too, so that container runtimes with a sigstoreSigned policy accept their platform's.
    """
    reference = parse_image(image)
    if not isinstance(reference, RegistryReference | LayoutReference):
        raise InvalidInput(
            f"can't sign {reference}", hint="Use oci:DIR:TAG or a registry reference."
        )
    with durable.reading(key):
        pem = key.read_bytes()
    password = os.environ.get(PASSWORD_VARIABLE)
    private = keys.load_private_key(pem, password.encode() if password else None)
    place = open_image_repository(reference, access)
    subject = place.resolve(reference.name)
    signed = cosign.sign_all(place, place, subject, private, name=_name(reference))
    document = {
        "image": image,
        "digest": str(subject.digest),
        "signature": str(signed[subject.digest]),
        "manifests": {str(manifest): str(signature) for manifest, signature in signed.items()},
    }
    console.result(document, f"Signed {subject.digest} and {len(signed) - 1} manifests in it")


def _name(reference: LayoutReference | RegistryReference) -> str:
    """The identity to sign: policies compare it with the reference of a pull, by default with its tag."""
    if isinstance(reference, LayoutReference):
        return reference.path.name
    name = f"{reference.registry}/{reference.repository}"
    return name if reference.digest else f"{name}:{reference.tag or DEFAULT_TAG}"
