"""`weightyard pull`: fetch a model image into this machine's cache, through its agent where one runs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click

from cache_agent.api.wire import PullBody, PullDone, PullProgress
from cache_agent.cache import open_cache
from modelimage.access import Access
from modelimage.errors import Unreachable
from weightyard.console import Console, pass_console
from weightyard.options import access_options, root_option
from weightyard.text import format_bytes, format_duration


@click.command()
@click.argument("image")
@click.option("--variant", metavar="NAME", help="Which precision; by default the image's own.")
@root_option
@access_options
@pass_console
def pull(console: Console, *, image: str, variant: str | None, root: Path, access: Access) -> None:
    """Fetch IMAGE into the cache, verified and durable, and print the directory that holds the model.

    IMAGE is registry.example/team/model:tag, or oci:DIR[:TAG] for a layout directory.
    """
    with open_cache(root, access) as cache:
        done = follow(console, image, cache.pull(PullBody(image=image, variant=variant)))
    if done.stale:
        console.say(f"the registry is away: this is the model that {image} last named")
    console.say(
        f"{format_bytes(done.size)}, of which fetched {format_bytes(done.fetched)}, "
        f"in the cache already {format_bytes(done.reused + done.resumed)}, "
        f"in {format_duration(done.seconds)}"
    )
    console.result(done.model_dump(exclude={"event"}), done.path)


def follow(console: Console, image: str, events: Iterable[PullProgress | PullDone]) -> PullDone:
    """Show a pull's progress until it is done. Raises what ended it."""
    stream = iter(events)
    first = next((e for e in stream if isinstance(e, PullDone) or e.total), None)
    if first is None or isinstance(first, PullDone):
        return _done(first)
    seen = first.done
    with console.progress(f"pull {image}", first.total) as bar:
        bar.resume(seen)
        for event in stream:
            if isinstance(event, PullDone):
                return event
            bar.advance(event.done - seen)
            bar.describe(event.state)
            seen = event.done
    return _done(None)


def _done(event: PullDone | None) -> PullDone:
    if event is None:
        raise Unreachable("the pull ended without a result", hint="Pull again.")
    return event
