"""A node's cache: its parts and their lifetime. `cache_agent.daemon` assembles it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cache_agent.access.signatures import Trust
from cache_agent.api.wire import CheckView
from cache_agent.fetch.download import Downloads
from cache_agent.fetch.engine import FetchEngine
from cache_agent.fetch.pull import Pull
from cache_agent.fetch.puller import Puller
from cache_agent.fetch.repair import NodeRepairer
from cache_agent.fetch.values import PullRequest
from cache_agent.leases.holders import Machine
from cache_agent.node.activity import Activity
from cache_agent.node.consistency import ConsistencyCheck
from cache_agent.node.maintenance import Maintenance
from cache_agent.observability.events import Events
from cache_agent.residency.warmer import PageCacheWarmer
from cache_agent.store.manifests import ManifestCache
from cache_agent.store.roots import Roots
from modelimage.errors import Busy

# Commands have a node without tiers and peers, and don't import their clients.
if TYPE_CHECKING:
    from cache_agent.node.tiers import Tiers
    from cache_agent.peers.tier import Peers


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """The parts of one node. A context manager; closing cancels running pulls. `clock`: wall time in seconds.

    For the composition root: servers and pre-warming get the parts that they use, not the node.
    `tiers` is None where the image itself is the only source, `peers` where the settings name none.
    """

    store: Roots
    manifest_cache: ManifestCache
    trust: Trust
    engine: FetchEngine
    downloads: Downloads
    puller: Puller
    repairer: NodeRepairer
    warmer: PageCacheWarmer
    maintenance: Maintenance
    activity: Activity
    tiers: Tiers | None
    peers: Peers | None
    machine: Machine
    events: Events
    clock: Callable[[], float]

    def pull(self, request: PullRequest) -> Pull:
        """Start a pull; returns its handle. Raises InvalidInput for a Docker engine's image."""
        pull = self.puller.start(request)
        self.activity.began(str(request.image), request.variant, pull)
        return pull

    def check(self, *, repair: bool = False, quick: bool = False) -> CheckView:
        """Check the store's invariants; with `repair`, repair what is possible and report it.

        Raises Busy for a repair while pulls run.
        """
        busy = self.puller.busy
        # A repair moves files that running pulls rely on.
        if repair and busy:
            raise Busy("pulls are running", hint="Repair when they are done.")
        return ConsistencyCheck(self.store, self.repairer, quick, busy).run(repair=repair)

    def close(self) -> None:
        """End maintenance and all pulls, then close the store."""
        self.maintenance.stop()
        # Threads first, the store last: a pull that ends late still writes to the ledger.
        self.puller.close()
        self.engine.close()
        if self.peers is not None:
            self.peers.close()
        self.store.close()

    def __enter__(self) -> Node:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
