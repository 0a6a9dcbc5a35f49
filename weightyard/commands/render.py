"""`weightyard render`: renders a workspace for other systems."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, Final

import click

from modelimage.access import Access, open_reader
from modelimage.cpus import local_cpus
from modelimage.errors import InvalidInput, Unreachable
from modelimage.installation import installed_version
from weightyard.advanced import AdvancedOption
from weightyard.console import Console, pass_console
from weightyard.given_workspace import read_workspace
from weightyard.options import access_options, root_option, workspace_argument
from weightyard.rendered import header, rendered_text
from weightyard.up.local_hardware import local_hardware
from workspace.hardware import Hardware, cpu_need, requested_hardware
from workspace.images import resolve_workspace
from workspace.provisioning_spec import Provisioner
from workspace.render.child_process import render_up
from workspace.render.cluster import render_kubernetes
from workspace.render.compose import ROOT, render_compose
from workspace.render.karpenter import node_pool
from workspace.render.llmd import inference_pool, render_llmd
from workspace.render.release import (
    PinnedModel,
    Release,
    ResolvedImages,
    SiteFactory,
    plan_release,
    pod_site,
    store_site,
)
from workspace.render.routing import AGENT_IMAGE, SystemSettings
from workspace.render.standalone import check_reachable, undemanded_gpu
from workspace.schema import AUTO_VARIANT, Workspace
from workspace.sources import source_uri

TARGETS: Final = ("kubernetes", "compose", "llm-d", "llm-d-pool", "karpenter", "up")


@click.command()
@workspace_argument
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
@click.option(
    "--scrape-from",
    metavar="NAMESPACE",
    help="Let this namespace's Prometheus read the metrics (kubernetes).",
)
@click.option(
    "--node-class",
    metavar="KIND/NAME",
    help="The node class of the pool, such as EC2NodeClass/gpu (karpenter).",
)
@root_option
@access_options
@pass_console
def render(
    console: Console, *, given: str, name: str | None, target: str,
    system_namespace: str, agent_image: str, scrape_from: str | None, node_class: str | None,
    root: Path, access: Access,
) -> None:  # fmt: skip
    """Render WORKSPACE as YAML on stdout.

    WORKSPACE is a file (- is stdin), or a model as `weightyard up` takes it.

    The image is resolved and pinned by its digest, and the variant chosen for the GPU in the workspace
    (spec.resources.gpu or gpuMemory); `--to up` takes this machine's if the workspace names none, and builds a source
    as `up` does. The server's command line is the same for every target. A header says what the file needs.
    """
    _check_options(target, node_class=node_class, scrape_from=scrape_from)
    source = read_workspace(given, name=name, here=target == "up")
    if source.checkpoint is not None:
        raise InvalidInput(
            f"{given} is a checkpoint, not an image", hint="Build it first: weightyard build."
        )
    workspace = source.workspace
    if target == "up":
        workspace = _built_here(workspace, root, access, console)
    else:
        check_reachable(workspace, target)
    if target == "karpenter":
        _check_karpenter(workspace)
    resolved = _resolved(workspace, root, access, console, target=target)
    hardware = _hardware(workspace, target)
    release = plan_release(
        workspace, resolved, hardware=hardware, site_of=_site_of(workspace, target, root)
    )
    for reason in release.plan.reasons:
        console.say(f"variant not chosen: {reason}")
    condition = cpu_need(release.plan.kernels, release.plan.engine)
    if not release.plan.gpus and condition and not hardware.cpus:
        console.say(
            f"{release.plan.kernels} needs {condition} on a CPU: choose machines or nodes that have it"
        )
    if target in ("kubernetes", "llm-d") and (missing := undemanded_gpu(workspace, release)):
        console.say(f"warning: {missing}")
    environment = SystemSettings(system_namespace=system_namespace, agent_image=agent_image)
    documents = _documents(
        workspace, release, target=target, environment=environment, hardware=hardware,
        scraped_from=scrape_from, node_class=node_class or "",
    )  # fmt: skip
    shown = header(
        workspace, release, target=target, file=given, version=installed_version(),
        scraped_from=scrape_from,
    )  # fmt: skip
    console.result(
        documents if len(documents) > 1 else documents[0], rendered_text(documents, shown)
    )


def _check_options(target: str, *, node_class: str | None, scrape_from: str | None) -> None:
    """Refuses options that would change nothing. Raises InvalidInput."""
    if target == "karpenter" and node_class is None:
        raise InvalidInput(
            "a node pool needs a node class",
            hint="Give --node-class KIND/NAME, such as EC2NodeClass/gpu.",
        )
    owners = {
        "--node-class": ("karpenter", node_class),
        "--scrape-from": ("kubernetes", scrape_from),
    }
    for option, (owner, value) in owners.items():
        if value is not None and target != owner:
            raise InvalidInput(
                f"{option} is for --to {owner}, not for {target}", hint=f"Leave {option} out."
            )


def _check_karpenter(workspace: Workspace) -> None:
    """Refuses a pool for servers that Karpenter would make other nodes for. Raises InvalidInput."""
    provisioning = workspace.spec.resources.provisioning
    if provisioning is None or provisioning.by is not Provisioner.KARPENTER:
        raise InvalidInput(
            "a node pool is for servers that name their GPU to Karpenter, and these don't",
            hint="Set spec.resources.provisioning.by to karpenter.",
        )


def _documents(
    workspace: Workspace, release: Release, *, target: str, environment: SystemSettings,
    hardware: Hardware, scraped_from: str | None, node_class: str,
) -> list[dict[str, Any]]:  # fmt: skip
    if target == "kubernetes":
        return render_kubernetes(
            workspace, release, environment, hardware, scraped_from=scraped_from
        )
    if target == "compose":
        return [render_compose(workspace, release, environment)]
    if target == "llm-d":
        return [render_llmd(workspace, release, hardware)]
    if target == "llm-d-pool":
        return [inference_pool(workspace)]
    if target == "karpenter":
        return [node_pool(workspace, release, hardware, node_class=node_class)]
    return [render_up(release)]


def _built_here(workspace: Workspace, root: Path, access: Access, console: Console) -> Workspace:
    """The workspace with an image, built as `up` builds it; the builder, an extra, is imported only for sources."""
    if source_uri(workspace.spec.model) is None:
        return workspace
    from weightyard.up.image_build import with_image  # noqa: PLC0415

    return with_image(workspace, root=root, access=access, console=console)


def _resolved(
    workspace: Workspace, root: Path, access: Access, console: Console, *, target: str
) -> ResolvedImages:
    """The images by digest; for `up` from the cache where the registry can't be reached, as `up` does."""
    try:
        return resolve_workspace(workspace, lambda reference: open_reader(reference, access))
    except Unreachable:
        spec = workspace.spec
        if target != "up" or spec.runtime.adapters or spec.model.image is None:
            raise
        from weightyard.up.agent_cache import AgentCache  # noqa: PLC0415 - an extra

        wanted = None if spec.model.variant == AUTO_VARIANT else spec.model.variant
        cache = AgentCache(root, access, console)
        return ResolvedImages(
            PinnedModel(spec.model.image, cache.variants(spec.model.image, wanted))
        )


def _hardware(workspace: Workspace, target: str) -> Hardware:
    """The hardware in the spec; for `up`, which runs here, with this machine's CPU, or all of this machine's
    hardware where the spec names none."""
    wanted = workspace.spec.resources
    named = wanted.gpu or wanted.gpu_memory or wanted.mig_profile or wanted.gpus == 0
    if target == "up" and not named:
        return local_hardware(cpu_only=False)
    requested = requested_hardware(wanted)
    return replace(requested, cpus=local_cpus()) if target == "up" else requested


def _site_of(workspace: Workspace, target: str, root: Path) -> SiteFactory:
    if target == "compose":
        return store_site(workspace, ROOT)
    if target == "up":
        return store_site(workspace, PurePosixPath(root), host="127.0.0.1")
    return pod_site(workspace)
