"""`weightyard rm`: removes models from the cache."""

from __future__ import annotations

from pathlib import Path

import click

from cache_agent.api.wire import RemovedView, to_document
from cache_agent.daemon.cache_api import Cache, open_cache
from modelimage.errors import InUse
from weightyard.console import Console, pass_console
from weightyard.options import ModelName, root_option
from weightyard.text import format_bytes
from weightyard.up.holders import HolderNames, in_use


@click.command("rm")
@click.argument("models", type=ModelName(), nargs=-1, required=True, metavar="MODEL...")
@click.option("--unpin", is_flag=True, help="Also remove pinned models.")
@root_option
@pass_console
def rm(console: Console, *, models: tuple[str, ...], unpin: bool, root: Path) -> None:
    """Remove MODELs (key, beginning of a key, or image). Models in use are never removed."""
    with open_cache(root, create=False) as cache:
        removed = [_remove(cache, model, unpin=unpin, root=root) for model in models]
    console.result(
        [to_document(each) for each in removed],
        "\n".join(f"removed {each.key}, {format_bytes(each.freed)} freed" for each in removed),
    )
    for each in removed:
        for name in each.desired_by:
            console.say(
                f"note: it comes back, since the CachedModel {name} desires it; "
                f"`weightyard prewarm IMAGE --name {name} --remove` ends that"
            )


def _remove(cache: Cache, model: str, *, unpin: bool, root: Path) -> RemovedView:
    try:
        return cache.remove(model, unpin=unpin)
    except InUse as error:
        leases = cache.find(model).leases
        raise in_use(error, leases, HolderNames(root)) from error
