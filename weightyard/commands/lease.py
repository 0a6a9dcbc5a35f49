"""`weightyard lease`: lists, takes and ends leases."""

from __future__ import annotations

import time
from pathlib import Path

import click

from cache_agent.api.wire import LeaseBody, to_document
from cache_agent.daemon.cache_api import open_cache
from modelimage.errors import NotFound
from weightyard.advanced import SuggestingGroup
from weightyard.console import Console, pass_console
from weightyard.options import ModelName, root_option
from weightyard.text import format_duration
from weightyard.up.holders import HolderNames


@click.group(cls=SuggestingGroup)
def lease() -> None:
    """List, take and end leases. A leased model can't be evicted."""


@lease.command("ls")
@root_option
@pass_console
def list_leases(console: Console, *, root: Path) -> None:
    """List all leases and their holders."""
    with open_cache(root, create=False) as cache:
        found = cache.leases()
    # People read who it is; scripts get the holder as it was given.
    now, names = time.time(), HolderNames(root)
    rows = [
        (
            each.id,
            each.model.removeprefix("sha256:")[:12],
            each.holder if console.json else names.shown(each),
            format_duration(max(0, now - each.since)),
        )
        for each in found
    ]
    console.table(("lease", "model", "holder", "for"), rows, empty="no leases")


@lease.command()
@click.argument("model", type=ModelName())
@click.option("--holder", required=True, metavar="NAME", help="Your name for it, or pod:UID.")
@root_option
@pass_console
def take(console: Console, *, model: str, holder: str, root: Path) -> None:
    """Take a lease on MODEL and print its id."""
    with open_cache(root, create=False) as cache:
        # Plain names are those of people; what a program writes says its kind.
        named = holder if ":" in holder else f"manual:{holder}"
        view = cache.lease(LeaseBody(model=model, holder=named))
    console.result(to_document(view), view.id)


@lease.command()
@click.argument("lease_id", metavar="LEASE")
@root_option
@pass_console
def release(console: Console, *, lease_id: str, root: Path) -> None:
    """End a lease."""
    with open_cache(root, create=False) as cache:
        released = cache.release(lease_id)
    if not released:
        raise NotFound(f"no lease {lease_id}", hint="See `weightyard lease ls`.")
    console.result({"released": released}, f"released {lease_id}")
