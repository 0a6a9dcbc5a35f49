"""`weightyard gc`: frees space in the cache."""

from __future__ import annotations

from pathlib import Path

import click

from cache_agent.api.wire import GcBody, to_document
from cache_agent.daemon.cache_api import open_cache
from cache_agent.store.space import Amount
from modelimage.errors import NoSpace
from weightyard.console import Console, pass_console
from weightyard.options import root_option
from weightyard.text import format_bytes
from weightyard.up.holders import HolderNames


@click.command()
@click.option(
    "--free",
    default="0",
    metavar="AMOUNT",
    help="Evict models until this much space is freed: 50GB.",
)
@click.option("--dry-run", is_flag=True, help="Only show which models would be evicted, and why.")
@root_option
@pass_console
def gc(console: Console, *, free: str, dry_run: bool, root: Path) -> None:
    """Remove leftovers of interrupted downloads; with --free, evict the least valuable models too.

    The exit code is 10 if less is freed than was asked for, or would be.
    """
    with open_cache(root, create=False) as cache:
        need = Amount.parse(free).bytes
        view = cache.gc(GcBody(need=need, dry_run=dry_run))
    verb = "would evict" if dry_run else "evicted"
    lines = [f"{verb} {v.image} ({format_bytes(v.freed)}): {v.why}" for v in view.victims]
    lines.append(f"{'would free' if dry_run else 'freed'} {format_bytes(view.freed)}")
    console.result(to_document(view), "\n".join(lines))
    if view.freed < need:
        names = HolderNames(root)
        holders = list(dict.fromkeys(names.named(each) for each in view.held_by))
        held = f"; the rest is in use by {', '.join(holders[:5])}" if holders else ""
        raise NoSpace(
            f"{format_bytes(need - view.freed)} less than was asked for{held}",
            hint="`weightyard ls` shows what is leased and pinned; `weightyard df` what the rest of the disk holds.",
        )
