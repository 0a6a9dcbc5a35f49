"""Checks and opens the places that a build writes to, and the base that it builds upon."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from builder.destination import Destination, open_destination
from modelimage.access import Access, open_reader
from modelimage.digest import Digest
from modelimage.errors import InvalidInput, WeightyardError
from modelimage.reference import (
    EngineReference,
    ImageReference,
    LayoutReference,
    RegistryReference,
    parse_image,
)
from weightyard.console import Console

_ASK_SECONDS: Final = 10.0  # for what the tag names before a build


def check_apart(source: str, target: ImageReference) -> None:
    """Raises InvalidInput for a layout inside the checkpoint, which the next build would pack, and for no source at
    all: an unset variable would be the current directory."""
    if not source:
        raise InvalidInput(
            "SOURCE is empty",
            hint="Give a checkpoint directory, or hf://ORG/NAME for one on the Hub.",
        )
    # Resolved, because a link into the checkpoint would be packed as well.
    directory = Path(source).resolve()
    if isinstance(target, LayoutReference) and directory in (
        target.path.resolve(),
        *target.path.resolve().parents,
    ):
        raise InvalidInput(
            f"{target} is inside the checkpoint {source}", hint="Choose a directory beside it."
        )


def open_target(
    console: Console, target: ImageReference, access: Access, mount_from: Sequence[str] = ()
) -> Destination:
    """The destination of an image: a registry, a layout, or a docker engine. Raises InvalidInput, AccessDenied."""
    if not isinstance(target, EngineReference):
        return open_destination(target, access, mount_from=mount_from)
    # Imported late: only builds into an engine need the extra with the docker SDK.
    from builder.engine_destination import EngineWriter  # noqa: PLC0415

    writer = EngineWriter(target.repository, os.environ, console)
    writer.check()
    return Destination(target, writer)


def base_reference(text: str | None) -> RegistryReference | LayoutReference | None:
    """The base image that somebody named. Raises InvalidInput."""
    reference = parse_image(text) if text else None
    if isinstance(reference, EngineReference):
        raise InvalidInput(
            f"a base image can't come from a docker engine: {reference}",
            hint="Use oci:DIR:TAG or a registry reference.",
        )
    return reference


def published(target: ImageReference, access: Access) -> Digest | None:
    """What the tag names before the build; None when that can't be read, which the build itself reports."""
    if isinstance(target, EngineReference):
        return None
    try:
        return open_reader(target, access.within(_ASK_SECONDS)).resolve(target.name).digest
    except WeightyardError:
        return None
