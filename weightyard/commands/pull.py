"""`weightyard pull`: pulls a model image into this machine's cache, through its agent if one is running."""

from __future__ import annotations

from pathlib import Path

import click

from cache_agent.api.wire import PullBody, to_document
from cache_agent.daemon.cache_api import open_cache
from modelimage.access import Access
from weightyard.console import Console, pass_console
from weightyard.options import ModelName, access_options, root_option
from weightyard.pull_progress import follow
from weightyard.text import format_bytes, format_duration


@click.command()
@click.argument("image", type=ModelName())
@click.option("--variant", metavar="NAME", help="Variant to pull; by default the image's own.")
@root_option
@access_options
@pass_console
def pull(console: Console, *, image: str, variant: str | None, root: Path, access: Access) -> None:
    """Pull IMAGE into the cache, verified and durable, and print the model's directory.

    IMAGE is registry.example/team/model:tag, or oci:DIR[:TAG] for a layout directory.
    """
    with console.resumable(), open_cache(root, access, create=True) as cache:
        done = follow(console, image, cache.pull(PullBody(image=image, variant=variant)))
    if done.stale:
        console.say(f"the registry can't be reached: using the model that {image} last referred to")
    console.say(
        f"{format_bytes(done.size)} in all, fetched {format_bytes(done.fetched)}, "
        f"already cached {format_bytes(done.reused + done.resumed)}, in {format_duration(done.seconds)}"
    )
    console.result(
        {name: value for name, value in to_document(done).items() if name != "event"}, done.path
    )
