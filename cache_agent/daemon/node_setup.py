"""Assembles a node from its settings: the concrete parts of its cache, for the agent and for single commands.

Part of the composition root: every part gets its collaborators here, by its constructor.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cache_agent.access.signatures import Trust
from cache_agent.api.node_cache import NodeCache
from cache_agent.config import AgentConfig, FetchSection, SignatureSection
from cache_agent.daemon.store_setup import StoreParts, open_roots
from cache_agent.fetch.download import Downloads
from cache_agent.fetch.engine import EngineOptions, FetchEngine
from cache_agent.fetch.fetcher import Fetcher
from cache_agent.fetch.job import SourceRetryPolicy
from cache_agent.fetch.puller import Puller
from cache_agent.fetch.repair import NodeRepairer
from cache_agent.fetch.resolver import Resolver
from cache_agent.leases.holders import Machine
from cache_agent.node.activity import Activity
from cache_agent.node.control_service import Service
from cache_agent.node.desired_detail import DesiredDetails
from cache_agent.node.maintenance import Maintenance, MaintenanceOptions
from cache_agent.node.node import Node
from cache_agent.node.published_manifests import PublishedManifests
from cache_agent.observability.events import Events
from cache_agent.residency.pressure import MemoryFacts
from cache_agent.residency.warmer import PageCacheWarmer
from cache_agent.sources.image import ImageSource
from cache_agent.sources.source import ResolvedSource, Source, SourcesOf
from cache_agent.store.disk import Observer, ignore
from cache_agent.store.manifests import ManifestCache
from cache_agent.store.roots import Roots
from cache_agent.store.space import Amount, SpaceLimits
from modelimage.access import Access, open_reader
from modelimage.reference import ImageReference, RegistryReference
from modelimage.registry.credentials import Anonymous
from modelimage.repository import ImageReader

# Imported by those that have them: commands have a node without tiers and peers.
if TYPE_CHECKING:
    from cache_agent.node.tiers import Tiers
    from cache_agent.peers.tier import Peers


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """Settings of a node's cache. `extra_roots`: further complete stores, each on its own filesystem."""

    root: Path
    limits: SpaceLimits = field(default_factory=SpaceLimits)
    engine: EngineOptions = field(default_factory=EngineOptions)
    maintenance: MaintenanceOptions = field(default_factory=MaintenanceOptions)
    memory_budget: int = 0
    extra_roots: tuple[Path, ...] = ()
    signatures: tuple[SignatureSection, ...] = ()

    @classmethod
    def from_config(cls, root: Path, config: AgentConfig) -> NodeOptions:
        """Convert the agent's settings."""
        fetch, upkeep = config.fetch, config.maintenance
        return cls(
            root,
            SpaceLimits(Amount.parse(config.budget), Amount.parse(config.min_free)),
            EngineOptions(
                fetch.streams,
                fetch.stall_seconds,
                float(Amount.parse(fetch.bandwidth).bytes),
                _min_rate(fetch),
            ),
            MaintenanceOptions(
                upkeep.scrub_days * 86400.0, float(Amount.parse(upkeep.scrub_rate).bytes)
            ),
            Amount.parse(config.tiers.memory_budget).bytes,
            extra_roots=tuple(path.absolute() for path in config.extra_roots),
            signatures=config.signatures,
        )


def _min_rate(fetch: FetchSection) -> float:
    """The rate below which a source counts as slow; kept below our own bandwidth cap per stream."""
    slow, cap = (Amount.parse(each).bytes for each in (fetch.slow_rate, fetch.bandwidth_per_source))
    return min(slow, cap / fetch.streams / 2) if cap else float(slow)


def image_sources(
    resolved: ResolvedSource, reader: ImageReader, repository: str
) -> Sequence[Source]:
    """The image itself as the only source."""
    return [ImageSource(reader, resolved.record, resolved.layers, repository)]


@dataclass(frozen=True, slots=True)
class NodeParts:
    """A node's collaborators. `observe` is called before every change of the disk.

    `clock` is wall time, `monotonic` never goes back, both in seconds.
    `tiers` takes the place of `sources` and, unlike it, follows changed settings.
    """

    open_reader: Callable[[ImageReference], ImageReader]
    sources: SourcesOf = image_sources
    tiers: Tiers | None = None
    events: Events = field(default_factory=Events)
    clock: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    observe: Observer = ignore
    boot: str | None = None
    machine: Machine = field(default_factory=Machine)
    # Whether this node reads an image without credentials: then every caller may read it.
    is_anonymous: Callable[[ImageReference], bool] = lambda image: False
    peers: Peers | None = None

    @classmethod
    def real(
        cls, access: Access, events: Events | None = None, config: AgentConfig | None = None
    ) -> NodeParts:
        """Production parts; without `config` the image itself is the only source."""

        def reader(image: ImageReference) -> ImageReader:
            return open_reader(image, access)

        def is_anonymous(image: ImageReference) -> bool:
            return isinstance(image, RegistryReference) and access.is_anonymous(image)

        if config is None:
            return cls(reader, events=events or Events(), is_anonymous=is_anonymous)
        from cache_agent.node.tiers import Tiers  # noqa: PLC0415

        rate = Amount.parse(config.fetch.bandwidth_per_source).bytes
        told = events or Events()
        peers = None
        if config.peers is not None:
            # Imported late, with TLS and HTTP clients: most nodes and all commands are without peers.
            from cache_agent.daemon.peers_setup import make_peers  # noqa: PLC0415

            nobody = replace(access, credentials=Anonymous())
            peers = make_peers(
                config.peers,
                streams=config.fetch.streams,
                events=told,
                anonymous=lambda image: open_reader(image, nobody),
            )
        tiers = Tiers(
            config.tiers, reader, os.environ, rate, destinations=access.destinations, peers=peers
        )
        return cls(
            reader,
            tiers=tiers,
            events=told,
            is_anonymous=is_anonymous,
            peers=peers,
            # A pod exists as long as the kubelet keeps its directory, so the configured kubelet directory counts.
            machine=Machine(kubelet=config.servers.csi.kubelet)
            if config.servers.csi
            else Machine(),
        )


def open_node(options: NodeOptions, parts: NodeParts) -> Node:
    """Open the store and assemble the node over it. Raises Busy, NotWritable, DiskFailed, InvalidInput."""
    used = StoreParts(parts.events, parts.clock, parts.observe, parts.boot, parts.machine)
    trust = _trust(options)
    store = open_roots(options.root, options.extra_roots, options.limits, used)
    return _assemble(store, trust, options, parts)


def _trust(options: NodeOptions) -> Trust:
    return Trust.from_config(options.signatures, options.root / "images" / "trusted")


def _assemble(store: Roots, trust: Trust, options: NodeOptions, parts: NodeParts) -> Node:
    machine, clock, events = parts.machine, parts.clock, parts.events
    manifest_cache = ManifestCache(store.first.paths, store.first.disk)
    sources = parts.sources if parts.tiers is None else parts.tiers
    engine, downloads = FetchEngine(options.engine, parts.monotonic), Downloads()
    repairer = NodeRepairer(engine, parts.open_reader, sources, events)
    warmer = PageCacheWarmer(MemoryFacts(), options.memory_budget, events=events)
    puller = Puller(
        Resolver(store, parts.open_reader, trust, machine.platform),
        Fetcher(
            store,
            sources,
            downloads,
            published=PublishedManifests(manifest_cache, parts.is_anonymous, events, clock),
        ),
        engine,
        events,
        SourceRetryPolicy(min_rate=options.engine.min_rate),
    )
    shared = parts.tiers.populated if parts.tiers else tuple
    return Node(
        store=store,
        manifest_cache=manifest_cache,
        trust=trust,
        engine=engine,
        downloads=downloads,
        puller=puller,
        repairer=repairer,
        warmer=warmer,
        maintenance=Maintenance(store, repairer, options.maintenance, shared, warmer.relieve),
        activity=Activity(clock),
        tiers=parts.tiers,
        peers=parts.peers,
        machine=machine,
        events=events,
        clock=clock,
    )


def reconfigure(node: Node, config: AgentConfig) -> None:
    """Apply new settings: signatures, space, bandwidth, maintenance and tiers. All others need a restart.

    Raises InvalidInput, and then nothing has changed.
    """
    options = NodeOptions.from_config(node.store.first.paths.root, config)
    # First, since it may raise.
    node.trust.reconfigure(options.signatures)
    node.store.set_limits(options.limits)
    node.engine.set_bandwidth(options.engine.bandwidth)
    if node.tiers is not None:
        rate = Amount.parse(config.fetch.bandwidth_per_source).bytes
        node.tiers.reconfigure(config.tiers, rate)
    node.warmer.set_budget(options.memory_budget)
    node.maintenance.reconfigure(options.maintenance)


def control_service(
    node: Node,
    status: Callable[[], NodeCache],
    details: Callable[[], DesiredDetails],
) -> Service:
    """The control API's operations on a node. `status` builds its NodeCache, `details` tells of its desired models."""
    return Service(
        node.store,
        pull=node.pull,
        check=node.check,
        activity=node.activity,
        warmer=node.warmer,
        status=status,
        details=details,
    )


def open_service(store: Roots, root: Path, access: Access | None) -> tuple[Node, Service]:
    """A command's node over its open store, with the images themselves as the only sources, and its operations."""
    from cache_agent.observability.traces import traces_here  # noqa: PLC0415

    options = NodeOptions(root)
    parts = NodeParts.real(access or Access(), traces_here())
    node = _assemble(store, _trust(options), options, parts)

    # Both need the desired models, which cost as much to import as all else.
    def status() -> NodeCache:
        from cache_agent.prewarm.node_status import status_without_agent  # noqa: PLC0415

        return status_without_agent(node.store, node.clock)

    def details() -> DesiredDetails:
        from cache_agent.prewarm.node_status import details_without_agent  # noqa: PLC0415

        return details_without_agent(node.store, node.clock)

    return node, control_service(node, status, details)
