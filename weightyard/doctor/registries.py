"""Asks registries for images: whether they answer, and whether this user's credentials suffice."""

from __future__ import annotations

from modelimage.access import Access, open_reader
from modelimage.errors import AccessDenied, NotFound, WeightyardError
from modelimage.reference import RegistryReference
from weightyard.doctor.result import Finding, fail, ok


def check_image(image: RegistryReference, access: Access) -> Finding:
    """Whether an image can be read, or could be if it were there."""
    check, registry = f"image {image}", image.registry
    try:
        found = open_reader(image, access).resolve(image.name)
    except NotFound:
        # The registry let this user ask: a build may have to push it yet.
        return ok(check, f"{registry} answers; it has no such image")
    except AccessDenied as error:
        return fail(check, error.message, error.hint or f"Log in: docker login {registry}.")
    except WeightyardError as error:
        return fail(
            check, error.message, error.hint or "Check the registry's name and the network."
        )
    return ok(check, f"{registry} has it: {found.digest}")
