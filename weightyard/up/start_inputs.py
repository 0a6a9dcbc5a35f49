"""What a start needs before anything runs: this machine's hardware, and an image where only a source is named."""

from __future__ import annotations

from pathlib import Path

from modelimage.access import Access
from modelimage.errors import InvalidInput
from weightyard.console import Console
from weightyard.given_workspace import GivenWorkspace
from weightyard.up.local_hardware import local_hardware
from workspace.hardware import Hardware
from workspace.schema import Workspace
from workspace.sources import source_uri


def chosen_hardware(console: Console, workspace: Workspace, *, cpu: bool) -> Hardware:
    """What a workspace is served on here; `cpu` leaves GPUs out. Raises InvalidInput where there are too few."""
    wanted = workspace.spec.resources.gpus
    hardware = local_hardware(cpu_only=cpu or wanted == 0)
    # A note and not an error: a workspace that is written for a cluster can be tried on a laptop.
    if wanted and hardware.gpu is None:
        console.say("no GPU here: serving on the CPU")
    if wanted and hardware.gpu is not None and wanted > hardware.count:
        raise InvalidInput(
            f"the workspace needs {wanted} GPUs, this machine has {hardware.count}",
            hint="Lower spec.resources.gpus, or serve on the CPU with --cpu.",
        )
    return hardware


def unbuilt(given: GivenWorkspace) -> str | None:
    """The source that must be built into an image first: a directory, hf:// or s3://; None where there is an image."""
    return str(given.checkpoint) if given.checkpoint else source_uri(given.workspace.spec.model)


def built_workspace(
    given: GivenWorkspace, *, root: Path, access: Access, console: Console
) -> Workspace:
    """The workspace with an image as its model. Raises the build's errors."""
    if unbuilt(given) is None:
        return given.workspace
    # Imported here: the builder is an extra, and only sources need it.
    from weightyard.up.image_build import with_image  # noqa: PLC0415

    return with_image(
        given.workspace, checkpoint=given.checkpoint, root=root, access=access, console=console
    )
