"""What a command may ask of a cache, whether an agent holds its store or the command opens it itself."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

from cache_agent.api.client import AgentClient
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
        """Progress several times a second, and PullDone last. Closing the iterator cancels the pull."""

    def models(self) -> list[ModelView]:
        """All models, by key."""

    def find(self, text: str) -> ModelView:
        """One model by key, beginning of a key, or image. Raises NotFound, InvalidInput."""

    def explain(self, text: str) -> list[ExplainView]:
        """Why a pod waits, or how an image is. Raises NotFound."""

    def lease(self, body: LeaseBody) -> LeaseView:
        """Promise that a model is in use. Raises NotFound."""

    def leases(self) -> list[LeaseView]:
        """All leases."""

    def release(self, lease_id: str) -> bool:
        """End a lease; False when there is none."""

    def pin(self, model: str, *, pinned: bool) -> ModelView:
        """Pin or unpin. Raises NotFound."""

    def remove(self, model: str, *, unpin: bool = False) -> RemovedView:
        """Remove a model. Raises NotFound, InUse."""

    def gc(self, body: GcBody) -> GcView:
        """Remove leftovers and evict."""

    def warm(self, body: WarmBody) -> WarmView:
        """Bring a model into memory. Raises NotFound, NoSpace when it doesn't fit the memory budget."""

    def status(self) -> NodeCache:
        """How this node stands with what is wanted, as its NodeCache."""

    def space(self) -> SpaceReport:
        """The space it uses and may use."""

    def check(self, *, repair: bool = False, quick: bool = False) -> CheckView:
        """Prove the store's invariants."""


@contextmanager
def open_cache(root: Path, access: Access) -> Iterator[Cache]:
    """The cache at `root`: its agent's if one answers there, else the store itself, opened for this command.

    Raises Busy when another process holds the store without answering.
    """
    client = AgentClient.of_socket(StorePaths(root).socket)
    if client is not None:
        yield client
        return
    # Only a command that opens the store itself pays for importing it.
    from cache_agent.node.node import Node, NodeOptions, NodeParts  # noqa: PLC0415
    from cache_agent.node.service import Service  # noqa: PLC0415
    from cache_agent.prewarm.node_status import status_without_agent  # noqa: PLC0415

    with Node(NodeOptions(root), NodeParts.real(access)) as node:
        yield Service(node, partial(status_without_agent, node))
