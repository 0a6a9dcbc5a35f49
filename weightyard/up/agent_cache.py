"""`up`'s cache on the node's agent: the running one's control API, or the store opened here for a moment.

A store has one owner at a time, so a moment in which another process owns it is waited for.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Final

from cache_agent.api.wire import LeaseBody, PullBody, PullDone, PullProgress
from cache_agent.cache import Cache, open_cache
from modelimage.access import Access, open_reader
from modelimage.errors import Busy, NotFound, Unreachable
from modelimage.paths import RECORD_NAME
from modelimage.record import Record
from modelimage.reference import ImageReference, parse_image
from modelimage.resolve import resolve_model
from weightyard.console import Console
from weightyard.pulling import follow
from weightyard.up.cache import Cached
from weightyard.up.process import ProcessIdentity

_POLL: Final = 0.2
PATIENCE: Final = 600.0  # seconds; another workspace may be pulling a large model
Event = PullProgress | PullDone


class AgentCache:
    """The cache of one root, through its agent where one runs."""

    def __init__(self, root: Path, access: Access, console: Console) -> None:
        self._root = root
        self._access = access
        self._console = console

    def variants(self, image: str, variant: str | None) -> dict[str, Record]:
        """See ModelCache."""
        reference = parse_image(image)
        try:
            return _resolve(reference, self._access, variant)
        except Unreachable:
            known = self._cached(image, variant)
            if not known:
                raise
            self._console.say(f"the registry is away: taking what {image} last named")
            return known

    def pull(self, image: str, variant: str | None) -> Cached:
        """See ModelCache."""
        with self._open() as cache:
            events = cache.pull(PullBody(image=image, variant=variant))
            with _closing(events):
                done = follow(self._console, image, events)
        if not done.fetched:
            self._console.say(f"{image} ({done.variant}) is in the cache")
        return Cached(Path(done.path), read_record(Path(done.path)))

    def hold(self, model: Cached, process: ProcessIdentity) -> str:
        """See ModelCache."""
        holder = f"process:{process.pid}/{process.start}/{process.boot}"
        with self._open() as cache:
            return cache.lease(LeaseBody(model=str(model.record.key), holder=holder)).id

    def release(self, lease: str) -> None:
        """See ModelCache."""
        with self._open() as cache:
            cache.release(lease)

    def _cached(self, image: str, variant: str | None) -> dict[str, Record]:
        with self._open() as cache:
            found = [model for model in cache.models() if image in model.images]
        records = {model.variant: read_record(Path(model.path)) for model in found}
        return {name: record for name, record in records.items() if variant in (None, name)}

    @contextmanager
    def _open(self) -> Iterator[Cache]:
        with ExitStack() as stack:
            yield self._enter(stack)

    def _enter(self, stack: ExitStack) -> Cache:
        deadline, told = time.monotonic() + PATIENCE, False
        while True:
            try:
                return stack.enter_context(open_cache(self._root, self._access))
            except Busy:
                if time.monotonic() > deadline:
                    raise
            if not told:
                self._console.say("waiting for another process that uses the cache")
                told = True
            time.sleep(_POLL)


def read_record(model_dir: Path) -> Record:
    """The record that a model directory carries. Raises NotFound, InvalidImage."""
    path = model_dir / RECORD_NAME
    try:
        return Record.parse(path.read_bytes())
    except FileNotFoundError as error:
        raise NotFound(
            f"the model directory {model_dir} has no {RECORD_NAME}",
            hint="Run `weightyard check --repair`.",
        ) from error


def _resolve(reference: ImageReference, access: Access, variant: str | None) -> dict[str, Record]:
    """The records of an image's variants: the default first, then the others that it names."""
    reader = open_reader(reference, access)
    first = resolve_model(reader, reference.name, variant)
    records = {first.record.variant: first.record}
    if variant is None:
        for other in first.variants:
            if other not in records:
                records[other] = resolve_model(reader, reference.name, other).record
    return records


def _closing(events: Iterator[Event]) -> AbstractContextManager[object]:
    """Closing the iterator cancels the pull, whatever ended the loop over it."""
    return closing(events) if isinstance(events, Generator) else nullcontext()
