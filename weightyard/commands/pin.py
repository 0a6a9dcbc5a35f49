"""`weightyard pin`: keeps a model in the cache whatever else needs its space."""

from __future__ import annotations

from pathlib import Path

import click

from cache_agent.api.wire import to_document
from cache_agent.daemon.cache_api import open_cache
from weightyard.console import Console, pass_console
from weightyard.options import ModelName, root_option


@click.command()
@click.argument("model", type=ModelName())
@click.option("--remove", is_flag=True, help="Unpin it instead.")
@root_option
@pass_console
def pin(console: Console, *, model: str, remove: bool, root: Path) -> None:
    """Pin MODEL (key, beginning of a key, or image): it is never evicted."""
    with open_cache(root, create=False) as cache:
        view = cache.pin(model, pinned=not remove)
    console.result(to_document(view), f"{'pinned' if view.pinned else 'unpinned'} {view.key}")
