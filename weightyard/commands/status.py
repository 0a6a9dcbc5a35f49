"""`weightyard status`: shows which nodes hold which models, the progress of others, and problems."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from cache_agent.api.node_cache import DesiredModelStatus, Held, NodeCache
from cache_agent.api.page.node_rows import node_problems
from cache_agent.node.desired_detail import is_named
from modelimage.access import Access
from modelimage.errors import NotFound
from weightyard.console import Console, pass_console
from weightyard.kubectl import cluster_options
from weightyard.options import ModelName, access_options, root_option
from weightyard.prewarm_client import percent, prewarm_target
from weightyard.text import format_bytes, format_duration, one_line

_COLUMNS = (
    "model",
    "node",
    "state",
    "percent",
    "size",
    "tier",
    "pinned",
    "verified",
    "left",
    "note",
)


@click.command()
@click.argument("name", type=ModelName(), required=False)
@click.option(
    "--cluster", is_flag=True, help="Show all nodes of the cluster instead of this machine's agent."
)
@cluster_options
@root_option
@access_options
@pass_console
def status(
    console: Console,
    *,
    name: str | None,
    cluster: bool,
    context: str | None,
    kubeconfig: str | None,
    root: Path,
    access: Access,
) -> None:
    """Show desired and cached models, by model and node: one NAME, or all.

    For this machine's agent; for the whole cluster with --cluster, --context or --kubeconfig.
    """
    place = prewarm_target(root, access, cluster=cluster, context=context, kubeconfig=kubeconfig)
    now = time.time()
    nodes = place.nodes()
    rows = sorted(
        (
            row
            for node in nodes
            for row in _rows(node, now)
            if name is None or is_named(row[0], name)
        ),
        key=lambda row: (str(row[0]), str(row[1])),
    )
    # Before the table and the errors, since a problem may explain missing rows.
    for node in nodes:
        for problem in node_problems(node):
            console.say(one_line(f"{node.name}: {problem}"))
    if name is not None and not rows:
        raise NotFound(
            f"no model called {name} is desired or cached",
            hint="See all of them: weightyard status.",
        )
    where = f"{len(nodes)} node{'s' * (len(nodes) != 1)}"
    console.table(_COLUMNS, rows, empty=f"no models are desired or cached on {where}")


def _rows(node: NodeCache, now: float) -> Iterator[list[Any]]:
    keys = {each.model_key for each in node.status.desired}
    for wanted in node.status.desired:
        yield _wanted(node.name, wanted, now)
    for model in node.status.models:
        if model.key not in keys:
            yield _held(node.name, model, now)


def _wanted(node: str, wanted: DesiredModelStatus, now: float) -> list[Any]:
    left = None if wanted.seconds_left is None else format_duration(wanted.seconds_left)
    size = format_bytes(wanted.bytes_total) if wanted.bytes_total else None
    return [
        wanted.name, node, wanted.state.lower(), f"{percent(wanted)}%", size, wanted.tier,
        _yes(wanted.pinned), _ago(wanted.verified_at, now), left, wanted.message or wanted.reason or None,
    ]  # fmt: skip


def _held(node: str, model: Held, now: float) -> list[Any]:
    """The row of a held model that isn't desired: a server uses it, or it was desired before."""
    used = f"used by {model.leases}" if model.leases else None
    state = "held" if model.state == "Ready" else "releasing"
    return [
        model.image, node, state, "100%", format_bytes(model.size), model.tier,
        _yes(model.pinned), _ago(model.verified_at, now), None, used,
    ]  # fmt: skip


def _yes(value: bool) -> str | None:
    return "yes" if value else None


def _ago(stamp: str | None, now: float) -> str | None:
    if stamp is None:
        return None
    return f"{format_duration(max(0.0, now - datetime.fromisoformat(stamp).timestamp()))} ago"
