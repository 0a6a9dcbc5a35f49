"""The cache of `up`: the running agent's control API, or the store opened here briefly.

A store has one owner at a time, so `up` waits while another process owns it. The owner's lock is released when it ends,
so a busy store always means a live owner; the wait has no limit. A lease held by the server's own process survives a
crash of the supervisor and ends with the server.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import (
    AbstractContextManager,
    ExitStack,
    closing,
    contextmanager,
    nullcontext,
    suppress,
)
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cache_agent.api.wire import LeaseBody, ModelView, PullBody, PullDone, PullProgress
from cache_agent.daemon.cache_api import Cache, open_cache
from cache_agent.daemon.store_setup import available_to_new
from cache_agent.errors import NoStore
from cache_agent.leases.holders import ProcessName
from cache_agent.store.values import Holder, HolderKind
from modelimage.access import Access, open_reader
from modelimage.descriptor import LINUX_AMD64
from modelimage.errors import Busy, InvalidImage, InvalidInput, NotFound, Unreachable
from modelimage.foreign import (
    DerivedRecord,
    parse_record,
    served_from_directory,
    served_from_image,
)
from modelimage.path_rules import RECORD_NAME
from modelimage.reference import EngineReference, ImageReference, parse_image
from weightyard.console import Console
from weightyard.pull_progress import follow
from weightyard.up.process import ProcessIdentity
from workspace.images import read_variants
from workspace.servable import Servable
from workspace.startup import TierPart

_POLL: Final = 0.2
_DISK: Final = "disk"
Event = PullProgress | PullDone


@dataclass(frozen=True, slots=True)
class Cached:
    """A verified model on disk: its directory, its record, and where its bytes came from."""

    path: Path
    record: Servable
    parts: tuple[TierPart, ...] = ()


class AgentCache:
    """The cache of one root, through its agent if one is running."""

    def __init__(self, root: Path, access: Access, console: Console) -> None:
        self._root = root
        self._access = access
        self._console = console

    def variants(
        self, image: str, variant: str | None, *, may_pull: bool = True
    ) -> dict[str, Servable]:
        """The records of an image's variants (or of one), by variant; from the cache when the registry is unreachable.

        A foreign image with compressed layers can't be read before it is pulled, which is done if `may_pull`. Raises
        NotFound, UnknownVariant, AccessDenied, Unreachable, InvalidInput.
        """
        reference = parse_image(image)
        try:
            found = _resolve(reference, self._access, variant)
        # Only an unreachable registry falls back to the cache: a denied or deleted image must fail.
        except Unreachable:
            known = self._cached(image, variant)
            if not known:
                raise
            self._console.say(
                f"the registry can't be reached: using the model that {image} last referred to"
            )
            return known
        if found is None and not may_pull:
            known = self._cached(image, variant)
            if not known:
                raise InvalidInput(
                    f"{image} has compressed layers, so its facts are known once it is pulled",
                    hint=f"Run: weightyard pull {image}",
                )
            return known
        if found is None:
            model = self.pull(image, variant).record
            return {model.variant: model}
        return found

    def pull(self, image: str, variant: str | None) -> Cached:
        """Pulls what is missing of a variant (None: the default one), with progress. Raises a pull's errors."""
        with self._open(create=True) as cache:
            events = cache.pull(PullBody(image=image, variant=variant))
            with _closing(events):
                done = follow(self._console, image, events)
        if not done.fetched:
            self._console.say(f"{image} ({done.variant}) is in the cache")
        return Cached(Path(done.path), read_record(Path(done.path)), _parts(done))

    def hold(self, model: Cached, process: ProcessIdentity) -> str:
        """Leases the model until the process ends or `release`; returns the lease's id."""
        name = ProcessName(process.pid, str(process.start), process.boot)
        holder = str(Holder(HolderKind.PROCESS, str(name)))
        with self._open(create=True) as cache:
            return cache.lease(LeaseBody(model=str(model.record.key), holder=holder)).id

    def release(self, lease: str) -> None:
        """Ends a lease; a missing one isn't an error. Never waits: the lease ends with its process anyway."""
        with (
            suppress(Busy, NoStore),
            open_cache(self._root, self._access, create=False) as cache,
        ):
            cache.release(lease)

    def holds(self, record: Servable) -> bool:
        """Whether the model is in the cache."""
        return any(model.key == str(record.key) for model in self._models())

    def available(self) -> int:
        """Bytes that the cache can take, with what eviction can free."""
        try:
            with self._open(create=False) as cache:
                space = cache.space()
        except NoStore:
            return available_to_new(self._root)
        return space.headroom + space.evictable

    def _cached(self, image: str, variant: str | None) -> dict[str, Servable]:
        found = [model for model in self._models() if image in model.images]
        records = {model.variant: read_record(Path(model.path)) for model in found}
        return {name: record for name, record in records.items() if variant in (None, name)}

    def _models(self) -> list[ModelView]:
        """The cached models; none where there is no store, which looking doesn't create."""
        try:
            with self._open(create=False) as cache:
                return cache.models()
        except NoStore:
            return []

    def _open(self, *, create: bool) -> AbstractContextManager[Cache]:
        return open_when_free(self._root, self._access, self._console, create=create)


@contextmanager
def open_when_free(
    root: Path, access: Access, console: Console, *, create: bool
) -> Iterator[Cache]:
    """The cache of a root, as soon as no other process or thread has its store open. Raises the errors of opening."""
    with ExitStack() as stack:
        yield _enter(stack, root, access, console, create=create)


def _enter(
    stack: ExitStack, root: Path, access: Access, console: Console, *, create: bool
) -> Cache:
    shown = False
    while True:
        try:
            return stack.enter_context(open_cache(root, access, create=create))
        except Busy as busy:
            if not shown:
                console.say(f"waiting: {busy.message}")
                shown = True
        time.sleep(_POLL)


def _parts(done: PullDone) -> tuple[TierPart, ...]:
    """What a pull got from each tier; what was here before it counts for the disk."""
    here = done.reused + done.resumed + done.tiers.get(_DISK, 0)
    fetched = [
        TierPart(tier, size, round(done.tier_seconds.get(tier, 0.0), 3))
        for tier, size in done.tiers.items()
        if tier != _DISK
    ]
    return (*fetched, *([TierPart(_DISK, here, 0.0)] if here else []))


def read_record(model_dir: Path) -> Servable:
    """The record in a model directory. Raises NotFound, InvalidImage."""
    path = model_dir / RECORD_NAME
    try:
        record = parse_record(path.read_bytes())
    except FileNotFoundError as error:
        raise NotFound(
            f"the model directory {model_dir} has no {RECORD_NAME}",
            hint="Run `weightyard check --repair`.",
        ) from error
    return served_from_directory(model_dir, record) if isinstance(record, DerivedRecord) else record


def _resolve(
    reference: ImageReference, access: Access, variant: str | None
) -> dict[str, Servable] | None:
    """The records of an image's variants, default first; None for a foreign image with compressed layers."""
    reader = open_reader(reference, access)
    if isinstance(reference, EngineReference):
        raise InvalidInput(f"{reference} is in a docker engine", hint="Push it to a registry.")
    root = reader.resolve(reference.name)
    found = read_variants(reader, root, variant)
    if found is None:
        try:
            served = served_from_image(reader, root, LINUX_AMD64)
        # Of compressed layers the files are known once all is read.
        except InvalidImage:
            return None
        found = {served.variant: served}
    return found


def _closing(events: Iterator[Event]) -> AbstractContextManager[object]:
    """Closes the iterator when its loop ends: closing it cancels the pull."""
    return closing(events) if isinstance(events, Generator) else nullcontext()
