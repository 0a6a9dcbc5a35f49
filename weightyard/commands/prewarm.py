"""`weightyard prewarm`: makes nodes hold a model before it is requested."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import yaml

from cache_agent.api.kube_objects import API_VERSION
from modelimage.access import Access
from modelimage.errors import InvalidInput
from weightyard.console import Console, pass_console
from weightyard.kubectl import cluster_options, kubectl
from weightyard.options import ModelName, access_options, root_option
from weightyard.prewarm_client import (
    ClusterTarget,
    LocalTarget,
    PrewarmStatus,
    PrewarmTarget,
    checked,
    name_of,
    node_selector,
    wait_ready,
)

Json = dict[str, Any]


@click.command()
@click.argument("image", type=ModelName())
@click.option("--name", help="What to call it; by default after the image.")
@click.option("--variant", metavar="NAME", help="Which precision; by default the image's own.")
@click.option(
    "--nodes",
    multiple=True,
    metavar="LABEL=VALUE|NODE",
    help="Only nodes with this label, or of this name; may be repeated. Means the cluster.",
)
@click.option(
    "--tier",
    type=click.Choice(["disk", "memory"]),
    default="disk",
    show_default=True,
    help="memory keeps it in the page cache as well, as far as it fits.",
)
@click.option("--pin", is_flag=True, help="Never evict it.")
@click.option(
    "--priority",
    type=click.IntRange(0, 99),
    default=50,
    show_default=True,
    help="Higher is fetched first and gives way last.",
)
@click.option("--pull-secret", help="A Secret in Weightyard's namespace to read the image with.")
@click.option(
    "--runtime-image", metavar="IMAGE", help="Have the container runtime pull this image too."
)
@click.option(
    "--window",
    metavar="HH:MM-HH:MM",
    help="Fetch only between these times, every day; in UTC unless --time-zone says otherwise.",
)
@click.option("--time-zone", help="The window's time zone, such as Europe/Berlin.")
@click.option("--bandwidth", help="Bytes a second that each node may fetch it with: 100M.")
@click.option("--wait", is_flag=True, help="Wait until all nodes that should hold it do.")
@click.option(
    "--timeout",
    "timeout_seconds",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="How long to --wait; by default as long as it takes.",
)
@click.option("--remove", is_flag=True, help="Want it no more: it stays until space is needed.")
@click.option("--dry-run", is_flag=True, help="Print the document and write nothing.")
@click.option("--cluster", is_flag=True, help="In the cluster, not for this machine's agent.")
@cluster_options
@root_option
@access_options
@pass_console
def prewarm(
    console: Console,
    *,
    image: str,
    name: str | None,
    variant: str | None,
    nodes: tuple[str, ...],
    tier: str,
    pin: bool,
    priority: int,
    pull_secret: str | None,
    runtime_image: str | None,
    window: str | None,
    time_zone: str | None,
    bandwidth: str | None,
    wait: bool,
    timeout_seconds: float | None,
    remove: bool,
    dry_run: bool,
    cluster: bool,
    context: str | None,
    kubeconfig: str | None,
    root: Path,
    access: Access,
) -> None:
    """Have the nodes of a cluster, or this machine's agent, fetch IMAGE ahead.

    Writes a CachedModel: into the cluster with --cluster, --nodes, --context or --kubeconfig, else into the directory
    that the agent of --root reads. Running it again updates that CachedModel.
    """
    name = name or name_of(image, variant)
    spec = {
        "image": image, "variant": variant, "nodeSelector": node_selector(nodes) or None,
        "tier": tier if tier != "disk" else None, "pin": pin or None,
        "priority": priority if priority != 50 else None, "pullSecret": pull_secret,
        "runtimeImage": runtime_image, "window": _window(window, time_zone), "bandwidth": bandwidth,
    }  # fmt: skip
    document = checked(_document(name, spec))
    in_cluster = cluster or bool(nodes or context or kubeconfig)
    if dry_run:
        console.result(document, yaml.safe_dump(document, sort_keys=False).rstrip())
        return
    place: PrewarmTarget = (
        ClusterTarget(kubectl(context, kubeconfig)) if in_cluster else LocalTarget(root, access)
    )
    if remove:
        place.remove(name)
        console.result({"name": name, "wanted": False}, f"{name} isn't wanted any more")
        return
    place.put(document)
    if wait:
        _wait(console, place, name, timeout_seconds)
    said = "is ready" if wait else "is wanted; see `weightyard status`"
    console.result({"name": name, "wanted": True, "ready": wait or None}, f"{name} {said}")


def _document(name: str, spec: Json) -> Json:
    return {
        "apiVersion": API_VERSION,
        "kind": "CachedModel",
        "metadata": {"name": name},
        "spec": {key: value for key, value in spec.items() if value is not None},
    }


def _window(text: str | None, zone: str | None) -> Json | None:
    if text is None:
        if zone is not None:
            raise InvalidInput("--time-zone needs --window")
        return None
    start, dash, end = text.partition("-")
    if not dash:
        raise InvalidInput(f"not a window: {text!r}", hint="Write 22:00-06:00.")
    return {"start": start, "end": end, **({"timeZone": zone} if zone else {})}


def _wait(console: Console, place: PrewarmTarget, name: str, seconds: float | None) -> None:
    told: list[PrewarmStatus] = []

    def tell(standing: PrewarmStatus) -> None:
        if standing not in told[-1:]:
            told.append(standing)
            console.event("progress", model=name, percent=standing.percent, text=standing.text)
            if not console.json:
                console.say(f"{name}: {standing.percent}%, {standing.text}")

    wait_ready(place, name, seconds=seconds, tell=tell)
