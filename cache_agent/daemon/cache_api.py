"""The interface of a node's cache for commands, through its agent or, without one, on the store itself."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cache_agent.api.wire import (
    CheckView,
    ExplainView,
    GcBody,
    GcView,
    LeaseBody,
    LeaseView,
    ModelView,
    PullBody,
    PullDone,
    PullProgress,
    RemovedView,
    SpaceReport,
    WarmBody,
    WarmView,
)
from cache_agent.daemon.store_setup import open_roots
from cache_agent.errors import NoStore
from cache_agent.net.sockets import is_listening
from cache_agent.node.store_service import StoreService
from cache_agent.store.paths import StorePaths
from cache_agent.store.roots import Roots
from cache_agent.store.store import is_store

# Imported by those that use them.
if TYPE_CHECKING:
    from cache_agent.api.node_cache import NodeCache
    from cache_agent.node.control_service import Service
    from cache_agent.node.node import Node
    from modelimage.access import Access


class Cache(Protocol):
    """A node's cache. Every method raises subclasses of WeightyardError."""

    def pull(self, body: PullBody) -> Generator[PullProgress | PullDone, None, None]:
        """Pull a model; yields progress several times a second and PullDone last. Closing the iterator cancels it."""

    def models(self) -> list[ModelView]:
        """All models, by key."""

    def find(self, text: str) -> ModelView:
        """One model by key, prefix of a key, or image. Raises NotFound, InvalidInput."""

    def explain(self, text: str) -> list[ExplainView]:
        """Why a pod waits, or the state of an image. Raises NotFound."""

    def activity(self) -> list[ExplainView]:
        """Every pod that waits for its model, and every other pull that runs."""

    def lease(self, body: LeaseBody) -> LeaseView:
        """Lease a model, so that it can't be evicted. Raises NotFound."""

    def leases(self) -> list[LeaseView]:
        """All leases."""

    def release(self, lease_id: str) -> bool:
        """End a lease. Returns False when there is none."""

    def pin(self, model: str, *, pinned: bool) -> ModelView:
        """Pin or unpin a model. Raises NotFound."""

    def remove(self, model: str, *, unpin: bool = False) -> RemovedView:
        """Remove a model. Raises NotFound, InUse."""

    def gc(self, body: GcBody) -> GcView:
        """Remove leftovers and evict."""

    def warm(self, body: WarmBody) -> WarmView:
        """Read a model into memory. Raises NotFound, NoSpace when it doesn't fit the memory budget."""

    def status(self) -> NodeCache:
        """The node's NodeCache: its models, and its progress towards the desired state."""

    def space(self) -> SpaceReport:
        """The space that the cache uses and may use."""

    def check(self, *, repair: bool = False, quick: bool = False) -> CheckView:
        """Check the store's invariants; `quick` reads fewer bytes, `repair` fixes findings."""


class StoreCache(StoreService):
    """The cache of a command without an agent: its open store, and the rest of a node once it is asked for.

    Listing, removing and leasing start without what fetches, which takes several times as long to import.
    """

    def __init__(self, store: Roots, root: Path, access: Access | None) -> None:
        super().__init__(store)
        self._root, self._access = root, access
        self._opened: tuple[Node, Service] | None = None

    def pull(self, body: PullBody) -> Generator[PullProgress | PullDone, None, None]:
        return self._service().pull(body)

    def remove(self, model: str, *, unpin: bool = False) -> RemovedView:
        # Most machines without an agent have no desired models, and read none.
        if not StorePaths(self._root).prewarm.exists():
            return super().remove(model, unpin=unpin)
        from cache_agent.node.control_service import with_desired  # noqa: PLC0415

        before = self._service().report()
        return with_desired(super().remove(model, unpin=unpin), before)

    def explain(self, text: str) -> list[ExplainView]:
        return self._service().explain(text)

    def activity(self) -> list[ExplainView]:
        return self._service().activity()

    def warm(self, body: WarmBody) -> WarmView:
        return self._service().warm(body)

    def status(self) -> NodeCache:
        return self._service().status()

    def check(self, *, repair: bool = False, quick: bool = False) -> CheckView:
        return self._service().check(repair=repair, quick=quick)

    def close(self) -> None:
        """End what runs, then close the store."""
        if self._opened is None:
            self._store.close()
        else:
            self._opened[0].close()

    def _service(self) -> Service:
        if self._opened is None:
            from cache_agent.daemon.node_setup import open_service  # noqa: PLC0415

            self._opened = open_service(self._store, self._root, self._access)
        return self._opened[1]


@contextmanager
def open_cache(root: Path, access: Access | None = None, *, create: bool) -> Iterator[Cache]:
    """The cache at `root`: through its agent if one is listening, else the store itself, opened for this command.

    `access` is for pulls and repairs; anonymous by default. `create`: whether a store is created where there is none.
    It is for what brings a model: all else would answer for a mistyped root as for an empty cache, and leave a store
    there. Raises NoStore; Busy when another process holds the store but doesn't listen.
    """
    socket = StorePaths(root).socket
    if is_listening(socket):
        from cache_agent.api.control_client import AgentClient  # noqa: PLC0415

        yield AgentClient(socket)
        return
    if not create:
        require_store(root)
    with closing(StoreCache(open_roots(root), root, access)) as cache:
        yield cache


def require_store(root: Path) -> None:
    """Raises NoStore where there is none. Changes nothing."""
    if not is_store(root):
        raise NoStore(
            f"no store at {root}",
            hint="Check --root and WEIGHTYARD_ROOT (default: ~/.cache/weightyard/store). "
            "`weightyard pull IMAGE` creates a store.",
        )
