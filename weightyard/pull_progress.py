"""Shows a pull's events as progress on the console, for every command that pulls."""

from __future__ import annotations

from collections.abc import Iterable

from cache_agent.api.wire import PullDone, PullProgress
from modelimage.errors import Unreachable
from weightyard.console import Console


def follow(console: Console, image: str, events: Iterable[PullProgress | PullDone]) -> PullDone:
    """Shows a pull's progress until it is done. Raises the pull's error."""
    done = _follow(console, image, events)
    if done.note:
        console.say(f"note: {done.note}")
    return done


def _follow(console: Console, image: str, events: Iterable[PullProgress | PullDone]) -> PullDone:
    # The bar begins once the total is known; a model that is cached already ends without one.
    stream = iter(events)
    first = next((e for e in stream if isinstance(e, PullDone) or e.total), None)
    if first is None or isinstance(first, PullDone):
        return _done(first)
    seen = first.done
    with console.progress(f"pull {image}", first.total) as bar:
        # Bytes found in the cache aren't part of the rate, or the time left would be far too short.
        there = first.reused + first.resumed
        bar.resume(there)
        bar.advance(seen - there)
        for event in stream:
            if isinstance(event, PullDone):
                return event
            bar.advance(event.done - seen)
            bar.describe(event.state)
            seen = event.done
    return _done(None)


def _done(event: PullDone | None) -> PullDone:
    if event is None:
        raise Unreachable("the agent ended the pull without a result", hint="Pull again.")
    return event
