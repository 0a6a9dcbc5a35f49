"""`weightyard render`: renders a workspace for other systems."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any, Final

import click
import yaml

from modelimage.access import Access, open_reader
from modelimage.cpus import local_cpus
from modelimage.errors import InvalidInput
from weightyard.advanced import AdvancedOption
from weightyard.console import Console, pass_console
from weightyard.given_workspace import read_workspace
from weightyard.options import access_options, default_root
from weightyard.up.local_hardware import local_hardware
from workspace.hardware import Hardware, cpu_need, requested_hardware
from workspace.images import resolve_workspace
from workspace.render.child_process import render_up
from workspace.render.cluster import render_kubernetes
from workspace.render.compose import ROOT, render_compose
from workspace.render.kubernetes import AGENT_IMAGE, SystemSettings
from workspace.render.llmd import inference_pool, render_llmd
from workspace.render.release import Release, SiteFactory, plan_release, pod_site, store_site
from workspace.schema import Workspace

TARGETS: Final = ("kubernetes", "compose", "llm-d", "llm-d-pool", "up")


@click.command()
@click.option(
    "-f", "--file", required=True,
    help="The workspace file, or a model as `up` takes it; - is stdin.",
)  # fmt: skip
@click.option("--name", help="Workspace to render, if the file has several.")
@click.option("--to", "target", type=click.Choice(TARGETS), required=True, help="Output format.")
@click.option(
    "--system-namespace",
    cls=AdvancedOption,
    default="weightyard",
    show_default=True,
    help="Weightyard's own namespace.",
)
@click.option(
    "--agent-image",
    cls=AdvancedOption,
    default=AGENT_IMAGE,
    show_default=True,
    help="Image of the agent, for compose.",
)
@access_options
@pass_console
def render(
    console: Console, *, file: str, name: str | None, target: str,
    system_namespace: str, agent_image: str, access: Access,
) -> None:  # fmt: skip
    """Render a workspace as YAML on stdout.

    The image is resolved and pinned by its digest, and the variant chosen for the GPU in the workspace
    (spec.resources.gpu or gpuMemory); `--to up` takes this machine's if the workspace names none. The server's
    command line is the same for every target.
    """
    given = read_workspace(file, name=name)
    if given.checkpoint is not None:
        raise InvalidInput(
            f"{file} is a checkpoint, not an image", hint="Build it first: weightyard build."
        )
    workspace = given.workspace
    resolved = resolve_workspace(workspace, lambda reference: open_reader(reference, access))
    hardware = _hardware(workspace, target)
    release = plan_release(
        workspace, resolved, hardware=hardware, site_of=_site_of(workspace, target)
    )
    for reason in release.plan.reasons:
        console.say(f"variant not chosen: {reason}")
    condition = cpu_need(release.plan.kernels, release.plan.engine)
    if not release.plan.gpus and condition and not hardware.cpus:
        console.say(
            f"{release.plan.kernels} needs {condition} on a CPU: choose machines or nodes that have it"
        )
    environment = SystemSettings(system_namespace=system_namespace, agent_image=agent_image)
    documents = _documents(workspace, release, target=target, environment=environment)
    console.result(
        documents if len(documents) > 1 else documents[0],
        yaml.safe_dump_all(documents, sort_keys=False, width=120).rstrip("\n"),
    )


def _documents(
    workspace: Workspace, release: Release, *, target: str, environment: SystemSettings
) -> list[dict[str, Any]]:
    if target == "kubernetes":
        return render_kubernetes(workspace, release, environment)
    if target == "compose":
        return [render_compose(workspace, release, environment)]
    if target == "llm-d":
        return [render_llmd(workspace, release)]
    if target == "llm-d-pool":
        return [inference_pool(workspace)]
    return [render_up(release)]


def _hardware(workspace: Workspace, target: str) -> Hardware:
    """The hardware in the spec; for `up`, which runs here, with this machine's CPU, or all of this machine's
    hardware where the spec names none."""
    wanted = workspace.spec.resources
    named = wanted.gpu or wanted.gpu_memory or wanted.mig_profile or wanted.gpus == 0
    if target == "up" and not named:
        return local_hardware(cpu_only=False)
    requested = requested_hardware(wanted)
    return replace(requested, cpus=local_cpus()) if target == "up" else requested


def _site_of(workspace: Workspace, target: str) -> SiteFactory:
    if target == "compose":
        return store_site(workspace, ROOT)
    if target == "up":
        return store_site(workspace, PurePosixPath(default_root(os.environ)), host="127.0.0.1")
    return pod_site(workspace)
