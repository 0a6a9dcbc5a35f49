"""Pulls models into this machine's cache and asks it, for Python programs."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache_agent.api.wire import ExplainView, LeaseBody, ModelView, PullBody
from cache_agent.daemon.cache_api import Cache as NodeApi
from cache_agent.daemon.cache_api import open_cache
from cache_agent.errors import NoStore
from cache_agent.leases.holders import ProcessName
from cache_agent.store.values import Holder, HolderKind
from modelimage.access import Access
from modelimage.errors import Busy, WeightyardError
from weightyard.options import absolute_image, default_root, environment_access
from weightyard.pull_progress import follow
from weightyard.python_api.progress_console import progress_console
from weightyard.up.agent_cache import open_when_free
from weightyard.up.process import own_identity


@dataclass(frozen=True, slots=True)
class PulledModel:
    """A model in the cache, verified and durable. Sizes in bytes; `fetched` of them came for this call.

    `path` is read-only and stays as long as the model isn't evicted: see `Cache.lease`. `stale`: the registry was
    unreachable, so this is the model that the image last referred to.
    """

    image: str
    variant: str
    key: str
    path: Path
    size: int
    fetched: int
    stale: bool = False


class Cache:
    """This machine's model cache at `root` (None: where the commands look), through its agent if one runs.

    Holds nothing open between calls. Without an agent a store has one user at a time: a call waits until it is free. A
    model is named by its key, an image, or what `pull` returned.
    """

    def __init__(
        self,
        root: Path | None = None,
        *,
        plain_http: Sequence[str] = (),
        ca_file: Path | None = None,
    ) -> None:
        self.root = Path(root).absolute() if root else default_root(os.environ)
        self._access: Access = environment_access(plain_http, ca_file)

    def models(self) -> list[ModelView]:
        """The cached models; none where there is no store yet."""
        try:
            with self._open() as cache:
                return cache.models()
        except NoStore:
            return []

    def pull(
        self, image: str, *, variant: str | None = None, progress: bool | None = None
    ) -> PulledModel:
        """Bring an image's model into the cache."""
        console = progress_console(progress)
        body = PullBody(image=absolute_image(str(image)), variant=variant)
        with open_when_free(self.root, self._access, console, create=True) as cache:
            events = cache.pull(body)
            # Interrupted, the pull is cancelled; its verified bytes stay for the next one.
            with closing(events):
                done = follow(console, image, events)
        path = Path(done.path)
        return PulledModel(
            done.image, done.variant, done.key, path, done.size, done.fetched, done.stale
        )

    @contextmanager
    def lease(self, model: str | PulledModel) -> Iterator[Path]:
        """The directory of a cached model, kept from eviction while the context lasts.

        It ends with this process too, however that ends. Where another process has the store when the context ends,
        the lease ends in the background, as soon as that is done. Raises NotFound.
        """
        me = own_identity()
        holder = Holder(HolderKind.PROCESS, str(ProcessName(me.pid, str(me.start), me.boot)))
        with self._open() as cache:
            lease = cache.lease(LeaseBody(model=_name(model), holder=str(holder)))
            (path,) = (Path(each.path) for each in cache.models() if each.key == lease.model)
        try:
            yield path
        finally:
            self._release(lease.id)

    def pin(self, model: str | PulledModel, *, pinned: bool = True) -> ModelView:
        """Keep a model from eviction until it is unpinned, or with `pinned=False` no longer. Raises NotFound."""
        with self._open() as cache:
            return cache.pin(_name(model), pinned=pinned)

    def remove(self, model: str | PulledModel) -> int:
        """Remove a model; the bytes that it freed. Raises NotFound, InUse."""
        with self._open() as cache:
            return cache.remove(_name(model)).freed

    def explain(self, subject: str | PulledModel) -> list[ExplainView]:
        """What a pod, an image or a desired model waits for, or why it failed. Raises NotFound."""
        with self._open() as cache:
            return cache.explain(_name(subject))

    def status(self) -> dict[str, Any]:
        """The node's NodeCache document: its models, space, and progress towards what is desired."""
        with self._open() as cache:
            return cache.status().to_document()

    def _open(self) -> AbstractContextManager[NodeApi]:
        return open_when_free(
            self.root, self._access, progress_console(progress=False), create=False
        )

    def _release(self, lease: str) -> None:
        """End a lease without waiting: the body of its context may have failed, and its error is what counts."""
        try:
            with open_cache(self.root, self._access, create=False) as cache:
                cache.release(lease)
        except Busy:
            threading.Thread(target=self._release_when_free, args=(lease,), daemon=True).start()
        except NoStore:
            return

    def _release_when_free(self, lease: str) -> None:
        # Else it ends with the process.
        with suppress(WeightyardError), self._open() as cache:
            cache.release(lease)


def _name(model: str | PulledModel) -> str:
    return model.key if isinstance(model, PulledModel) else absolute_image(str(model))


def pull(
    image: str,
    *,
    variant: str | None = None,
    root: Path | None = None,
    plain_http: Sequence[str] = (),
    ca_file: Path | None = None,
    progress: bool | None = None,
) -> PulledModel:
    """Bring an image's model into this machine's cache, verified; through the agent if one runs.

    `variant`: None is the image's own. `root`: the cache's directory, as `--root`.
    """
    cache = Cache(root, plain_http=plain_http, ca_file=ca_file)
    return cache.pull(image, variant=variant, progress=progress)
