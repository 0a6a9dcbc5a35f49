"""`weightyard top`: shows live what moves, which servers run and what is cached, here or in a cluster."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import click

from cache_agent.api.kube_objects import API_VERSION
from cache_agent.daemon.cache_api import open_cache
from modelimage.access import Access
from modelimage.errors import WeightyardError
from weightyard.console import Console, pass_console
from weightyard.kubectl import Kubectl, cluster_options, kubectl
from weightyard.options import Number, access_options, root_option
from weightyard.prewarm_client import ClusterTarget
from weightyard.top import Frame, NodeLook, cluster_frame, node_frame
from weightyard.up.phases import Phase
from weightyard.up.server_rows import server_load
from weightyard.up.state import all_workspaces, is_running

_WORKSPACES: Final = f"/apis/{API_VERSION}/workspaces"
# Of output that isn't a terminal: nothing is cut.
_WIDTH: Final = 1 << 16


@click.command()
@click.option("--once", is_flag=True, help="Show one look and end.")
@click.option(
    "--interval", "seconds", type=Number(min=0.2, max=3600), default=1.0, show_default=True,
    help="Seconds between two looks.",
)  # fmt: skip
@click.option("--cluster", is_flag=True, help="Show the cluster instead of this machine.")
@cluster_options
@root_option
@access_options
@pass_console
def top(
    console: Console,
    *,
    once: bool,
    seconds: float,
    cluster: bool,
    context: str | None,
    kubeconfig: str | None,
    root: Path,
    access: Access,
) -> None:
    """Show live what is being fetched, which servers run and what is cached. Ctrl-C ends it.

    Of this machine; of the whole cluster with --cluster, --context or --kubeconfig. Where the output isn't a terminal,
    and with --json, it shows one look and ends.
    """
    if cluster or context or kubeconfig:
        place = kubectl(context, kubeconfig)

        def look() -> Frame:
            return _cluster(place)
    else:

        def look() -> Frame:
            return _node(root, access)

    if once or console.json or console.quiet or not console.out.isatty():
        frame = look()
        width = shutil.get_terminal_size().columns if console.out.isatty() else _WIDTH
        console.result(frame.document, frame.text(width))
        return
    _live(console, look, seconds)


def _live(console: Console, look: Callable[[], Frame], seconds: float) -> None:
    from rich.console import Console as RichConsole  # noqa: PLC0415 - its import takes 0.1 s
    from rich.live import Live  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    terminal = RichConsole(file=console.out, no_color=console.no_color)
    frame = look()
    # The terminal's other screen: what was there before comes back at the end.
    with Live(console=terminal, screen=True, auto_refresh=False) as live:
        try:
            while True:
                live.update(Text(frame.text(terminal.width, terminal.height)), refresh=True)
                time.sleep(seconds)
                frame = _again(look, frame)
        except KeyboardInterrupt:
            return


def _again(look: Callable[[], Frame], before: Frame) -> Frame:
    """A new look; where it fails the one before, with the reason: who answers may be being replaced."""
    try:
        return look()
    except WeightyardError as error:
        return replace(before, failure=f"not of now: {error.message}; trying again")


def _node(root: Path, access: Access) -> Frame:
    known = all_workspaces(root)
    # A workspace that failed before its first pull has its state here, and no store yet.
    with open_cache(root, access, create=bool(known)) as cache:
        node, space, activity = cache.status(), cache.space(), cache.activity()
    # Those that failed too: who looks wants to know.
    servers = [each for each in known if each.phase is not Phase.STOPPED]
    running = filter(is_running, servers)
    loads = {each.name: load for each in running if (load := server_load(each)) is not None}
    return node_frame(NodeLook(node, space, activity, servers, loads), time.time())


def _cluster(place: Kubectl) -> Frame:
    nodes = ClusterTarget(place).nodes()
    found: list[dict[str, Any]] = place.get(_WORKSPACES).get("items") or []
    by_name = sorted(nodes, key=lambda each: each.name)
    return cluster_frame(by_name, found)
