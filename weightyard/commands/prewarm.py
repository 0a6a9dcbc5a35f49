"""`weightyard prewarm`: makes nodes hold a model before it is requested."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import yaml

from cache_agent.api.kube_objects import API_VERSION
from modelimage.access import Access
from modelimage.errors import InvalidInput
from modelimage.reference import parse_image
from weightyard.advanced import AdvancedOption
from weightyard.console import Console, pass_console
from weightyard.kubectl import cluster_options
from weightyard.options import ModelName, Number, WholeNumber, access_options, root_option
from weightyard.prewarm_client import (
    PrewarmStatus,
    PrewarmTarget,
    checked,
    free_name,
    is_of,
    name_of,
    node_selector,
    prewarm_target,
    wait_ready,
)

Json = dict[str, Any]


@click.command()
@click.argument("image", type=ModelName())
@click.option("--name", help="Name of the CachedModel; by default derived from the image.")
@click.option("--variant", metavar="NAME", help="Variant to fetch; by default the image's own.")
@click.option(
    "--nodes",
    multiple=True,
    metavar="LABEL=VALUE|NODE",
    help="Only nodes with this label or name. Repeatable. Implies --cluster.",
)
@click.option(
    "--tier",
    type=click.Choice(["disk", "memory"]),
    default="disk",
    show_default=True,
    help="memory also keeps it in the page cache, if it fits.",
)
@click.option("--pin", is_flag=True, help="Never evict it.")
@click.option(
    "--priority",
    type=WholeNumber(0, 99),
    default=50,
    show_default=True,
    help="Higher is fetched first and evicted last.",
)
@click.option(
    "--pull-secret",
    cls=AdvancedOption,
    help="Pull secret for the image, in Weightyard's namespace.",
)
@click.option(
    "--runtime-image",
    cls=AdvancedOption,
    metavar="IMAGE",
    help="Also pull this container image into the container runtime.",
)
@click.option(
    "--window",
    metavar="HH:MM-HH:MM",
    help="Fetch only between these times, every day, in UTC or --time-zone.",
)
@click.option(
    "--time-zone", cls=AdvancedOption, help="The window's time zone, such as Europe/Berlin."
)
@click.option(
    "--bandwidth", cls=AdvancedOption, help="Each node's limit in bytes per second: 100M."
)
@click.option("--wait", is_flag=True, help="Wait until all selected nodes hold it.")
@click.option(
    "--timeout",
    "timeout_seconds",
    type=Number(min=0),
    metavar="SECONDS",
    help="Limit for --wait, in seconds; none by default.",
)
@click.option(
    "--remove",
    is_flag=True,
    help="Remove the CachedModel; the model stays cached until its space is needed.",
)
@click.option("--dry-run", is_flag=True, help="Print the document and write nothing.")
@click.option("--cluster", is_flag=True, help="Use the cluster instead of this machine's agent.")
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
    # What no agent could ever read would wait for ever.
    parse_image(image)
    # Nodes are chosen in a cluster only.
    target = prewarm_target(
        root, access, cluster=cluster or bool(nodes), context=context, kubeconfig=kubeconfig
    )
    # Printing a document asks nobody.
    name = name or (name_of(image, variant) if dry_run else free_name(target, image, variant))
    spec = {
        "image": image, "variant": variant, "nodeSelector": node_selector(nodes) or None,
        "tier": tier if tier != "disk" else None, "pin": pin or None,
        "priority": priority if priority != 50 else None, "pullSecret": pull_secret,
        "runtimeImage": runtime_image, "window": _window(window, time_zone), "bandwidth": bandwidth,
    }  # fmt: skip
    document = checked(_document(name, spec))
    if dry_run:
        console.result(document, yaml.safe_dump(document, sort_keys=False).rstrip())
        return
    if remove:
        target.remove(name)
        console.result({"name": name, "desired": False}, f"{name} is no longer desired")
        return
    before = target.spec(name)
    target.put(document)
    if before and not is_of(before, image, variant):
        console.say(f"{name} was {before.get('image')} before")
    if wait:
        _wait(console, target, name, timeout_seconds)
    elif not target.is_read:
        console.say(f"no agent runs on {root}: the model is fetched once `weightyard agent` does")
    said = "is ready" if wait else "is desired now; see `weightyard status`"
    console.result({"name": name, "desired": True, "ready": wait or None}, f"{name} {said}")


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


def _wait(console: Console, target: PrewarmTarget, name: str, seconds: float | None) -> None:
    shown: list[PrewarmStatus] = []

    def show(status: PrewarmStatus) -> None:
        if status not in shown[-1:]:
            shown.append(status)
            console.event("progress", model=name, percent=status.percent, text=status.text)
            if not console.json:
                console.say(f"{name}: {status.percent}%, {status.text}")

    wait_ready(target, name, seconds=seconds, show=show)
