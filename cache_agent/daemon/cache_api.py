"""The interface of a node's cache for commands, through its agent or, without one, on the store itself."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from cache_agent.api.control_client import AgentClient
from cache_agent.api.node_cache import NodeCache
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
from cache_agent.store.paths import StorePaths
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


@contextmanager
def open_cache(root: Path, access: Access) -> Iterator[Cache]:
    """The cache at `root`: through its agent if one is listening, else the store itself, opened for this command.

    Raises Busy when another process holds the store but doesn't listen.
    """
    client = AgentClient.from_socket(StorePaths(root).socket)
    if client is not None:
        yield client
        return
    # Imported here, because commands that talk to an agent should start fast.
    from cache_agent.daemon.node_setup import (  # noqa: PLC0415
        NodeOptions,
        NodeParts,
        control_service,
        open_node,
    )

    with open_node(NodeOptions(root), NodeParts.real(access)) as node:

        def status() -> NodeCache:
            from cache_agent.prewarm.node_status import status_without_agent  # noqa: PLC0415

            return status_without_agent(node.store, node.clock)

        yield control_service(node, status)
