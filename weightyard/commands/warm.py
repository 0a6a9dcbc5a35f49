"""`weightyard warm`: reads a cached model into memory, so that its server starts from the page cache."""

from __future__ import annotations

from pathlib import Path

import click

from cache_agent.api.wire import WarmBody, to_document
from cache_agent.daemon.cache_api import open_cache
from weightyard.console import Console, pass_console
from weightyard.options import ModelName, root_option
from weightyard.text import format_bytes


@click.command()
@click.argument("model", type=ModelName())
@click.option(
    "--lock", is_flag=True, help="Keep it in memory while the agent runs, or until --unlock."
)
@click.option("--unlock", is_flag=True, help="Unlock its pages.")
@root_option
@pass_console
def warm(console: Console, *, model: str, lock: bool, unlock: bool, root: Path) -> None:
    """Read MODEL (key, beginning of a key, or image) into the page cache and show how much of it is resident."""
    with open_cache(root, create=False) as cache:
        view = cache.warm(WarmBody(model=model, lock=lock, unlock=unlock))
    if view.stopped:
        console.say(f"stopped early: {view.stopped}")
    doubt = (
        ""
        if view.believable
        else " (an estimate: the kernel hides pages of files that this user can't write)"
    )
    text = (
        f"{format_bytes(view.resident)} of {format_bytes(view.size)} in memory{doubt}, "
        f"{format_bytes(view.locked)} locked, charged to {view.cgroup}"
    )
    console.result(to_document(view), text)
