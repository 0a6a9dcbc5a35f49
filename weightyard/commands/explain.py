"""`weightyard explain`: shows why a pod or an image waits, the sources of its bytes, and the time left."""

from __future__ import annotations

import time
from pathlib import Path

import click

from cache_agent.api.wire import ExplainView, to_document
from cache_agent.daemon.cache_api import open_cache
from weightyard.console import Console, pass_console
from weightyard.options import ModelName, root_option
from weightyard.text import format_bytes, format_duration


@click.command()
@click.argument("subject", type=ModelName(), metavar="POD|IMAGE")
@root_option
@pass_console
def explain(console: Console, *, subject: str, root: Path) -> None:
    """Show what a pod waits for, or the state of an image, on this node.

    A pod is named by its UID, its name, or namespace/name.
    """
    with open_cache(root) as cache:
        found = cache.explain(subject)
    now = time.time()
    text = "\n".join(_text(view, now) for view in found)
    console.result([to_document(view) for view in found], text)


def _text(view: ExplainView, now: float) -> str:
    lines = [f"{view.subject}: {view.state}: {view.text}"]
    if view.image and view.image not in view.subject:
        lines.append(f"  image: {view.image}")
    if view.total:
        lines.append(f"  here: {format_bytes(view.done)} of {format_bytes(view.total)}")
    lines += [f"  from {name}: {format_bytes(size)}" for name, size in view.sources.items()]
    if view.bytes_per_second >= 1:
        lines.append(f"  rate: {format_bytes(view.bytes_per_second)}/s")
    if view.seconds_left is not None:
        lines.append(f"  left: {format_duration(view.seconds_left)}")
    lines.append(f"  since: {format_duration(max(0.0, now - view.since))}")
    return "\n".join(lines)
