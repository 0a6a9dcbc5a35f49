"""`weightyard df`: shows the space of the cache."""

from __future__ import annotations

from pathlib import Path

import click

from cache_agent.api.wire import SpaceReport, to_document
from cache_agent.daemon.cache_api import open_cache
from weightyard.console import Console, format_table, pass_console
from weightyard.options import root_option
from weightyard.text import format_bytes, plural


@click.command()
@root_option
@pass_console
def df(console: Console, *, root: Path) -> None:
    """Show how much space the cache uses, may use and could free."""
    with open_cache(root, create=False) as cache:
        space = cache.space()
    rows = [
        (
            "used by the cache",
            format_bytes(space.own),
            f"{plural(space.models, 'model')}, {plural(space.files, 'file')}",
        ),
        ("reserved for pulls", format_bytes(space.promised), ""),
        (
            "available",
            format_bytes(space.headroom),
            "without eviction, within budget and minimum free space",
        ),
        ("evictable", format_bytes(space.evictable), "neither leased nor pinned"),
        ("budget", format_bytes(space.budget), ""),
        ("free on the disk", format_bytes(space.disk_free), f"of {format_bytes(space.disk_total)}"),
        ("kept free", format_bytes(space.min_free), ""),
    ]
    text = format_table(("space", "bytes", ""), rows)
    if len(space.roots) > 1:
        text += "\n\n" + format_table(
            ("root", "used", "room", "evictable", "models"), _roots(space)
        )
    console.result(to_document(space), text)


def _roots(space: SpaceReport) -> list[tuple[str, str, str, str, str]]:
    return [
        (
            each.root,
            format_bytes(each.own),
            format_bytes(each.headroom),
            format_bytes(each.evictable),
            str(each.models),
        )
        for each in space.roots
    ]
