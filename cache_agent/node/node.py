"""Composition of a node's cache from concrete parts, for the agent and for single commands."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cache_agent.access.signatures import Trust
from cache_agent.api.wire import CheckView
from cache_agent.config import AgentConfig, FetchSection, SignatureSection
from cache_agent.fetch.download import Downloads
from cache_agent.fetch.engine import EngineOptions, FetchEngine
from cache_agent.fetch.job import SourceRetryPolicy
from cache_agent.fetch.pull import Published, Pull, Puller
from cache_agent.fetch.repair import NodeRepairer
from cache_agent.fetch.values import PullRequest
from cache_agent.leases.holders import Machine
from cache_agent.leases.usage import users_of
from cache_agent.node.activity import Activity
from cache_agent.node.consistency import ConsistencyCheck
from cache_agent.node.maintenance import Maintenance, MaintenanceOptions
from cache_agent.node.tiers import Tiers
from cache_agent.observability.events import Events
from cache_agent.peers.tier import Peers
from cache_agent.residency.pressure import DEFAULT_LIMIT, MemoryFacts
from cache_agent.residency.warmer import PageCacheWarmer
from cache_agent.sources.image import ImageSource
from cache_agent.sources.runtime_manifests import cache_manifests
from cache_agent.sources.shared import SharedStore
from cache_agent.sources.source import ResolvedSource, Source
from cache_agent.store.disk import Observer, ignore
from cache_agent.store.manifests import ManifestCache
from cache_agent.store.roots import Roots
from cache_agent.store.space import Amount, SpaceLimits
from cache_agent.store.store import StoreOptions
from cache_agent.store.values import repository_of
from modelimage.access import Access, open_reader
from modelimage.errors import Busy, Fault, WeightyardError
from modelimage.reference import ImageReference, RegistryReference
from modelimage.registry.credentials import Anonymous
from modelimage.repository import ImageReader


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """Settings of a node's cache. `extra_roots`: further complete stores, each on its own filesystem."""

    root: Path
    limits: SpaceLimits = field(default_factory=SpaceLimits)
    engine: EngineOptions = field(default_factory=EngineOptions)
    maintenance: MaintenanceOptions = field(default_factory=MaintenanceOptions)
    memory_budget: int = 0
    memory_pressure: float = DEFAULT_LIMIT
    extra_roots: tuple[Path, ...] = ()
    signatures: tuple[SignatureSection, ...] = ()

    @classmethod
    def of(cls, root: Path, config: AgentConfig) -> NodeOptions:
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
                upkeep.scrub_days * 86400.0,
                float(Amount.parse(upkeep.scrub_rate).bytes),
                upkeep.interval_seconds,
            ),
            Amount.parse(config.tiers.memory_budget).bytes,
            config.tiers.memory_pressure,
            tuple(path.absolute() for path in config.extra_roots),
            config.signatures,
        )


def _min_rate(fetch: FetchSection) -> float:
    """The rate below which a source counts as slow; kept below our own bandwidth cap per stream."""
    slow, cap = (Amount.parse(each).bytes for each in (fetch.slow_rate, fetch.bandwidth_per_source))
    return min(slow, cap / fetch.streams / 2) if cap else float(slow)


SourcesOf = Callable[[ResolvedSource, ImageReader, str], Sequence[Source]]


def image_sources(
    resolved: ResolvedSource, reader: ImageReader, repository: str
) -> Sequence[Source]:
    """The image itself as the only source."""
    return [ImageSource(reader, resolved.record, resolved.layers, repository)]


@dataclass(frozen=True, slots=True)
class NodeParts:
    """A node's collaborators. `observe` is called before every change of the disk; `clock` is wall time."""

    open_reader: Callable[[ImageReference], ImageReader]
    sources: SourcesOf = image_sources
    shared: Callable[[], Sequence[SharedStore]] = lambda: ()
    events: Events = field(default_factory=Events)
    clock: Callable[[], float] = time.time
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
        rate = Amount.parse(config.fetch.bandwidth_per_source).bytes
        told = events or Events()
        peers = None
        if config.peers is not None:
            nobody = replace(access, credentials=Anonymous())
            peers = Peers.of(
                config.peers,
                streams=config.fetch.streams,
                events=told,
                anonymous=lambda image: open_reader(image, nobody),
            )
        tiers = Tiers(config.tiers, reader, os.environ, rate, peers=peers)
        return cls(
            reader,
            sources=tiers,
            shared=tiers.populated,
            events=told,
            is_anonymous=is_anonymous,
            peers=peers,
            # A pod exists as long as the kubelet keeps its directory, so the configured kubelet directory counts.
            machine=Machine(kubelet=config.servers.csi.kubelet)
            if config.servers.csi
            else Machine(),
        )


class Node:
    """The node's roots and the engine that fills them. A context manager; closing cancels running pulls."""

    def __init__(self, options: NodeOptions, parts: NodeParts) -> None:
        self.options, self.machine, self.clock = options, parts.machine, parts.clock
        self.peers, self.events = parts.peers, parts.events
        self.trust = Trust.of(options.signatures, options.root / "images" / "trusted")
        self.store = Roots.open(
            options.root,
            options.extra_roots,
            StoreOptions(
                options.limits,
                parts.clock,
                observe=parts.observe,
                boot=parts.boot,
                events=parts.events,
                is_gone=parts.machine.is_gone,
                users=lambda models: users_of(models, parts.machine),
            ),
        )
        self.engine = FetchEngine(options.engine)
        self.manifest_cache = ManifestCache(self.store.first.paths, self.store.first.disk)
        self.activity = Activity(parts.clock)
        self._puller = Puller(
            self.store,
            self.engine,
            parts.open_reader,
            parts.sources,
            events=parts.events,
            policy=SourceRetryPolicy(min_rate=options.engine.min_rate),
            published=self._cache_manifests(parts),
            platform=parts.machine.platform,
            trust=self.trust,
        )
        self.warmer = PageCacheWarmer(
            MemoryFacts(), options.memory_budget, options.memory_pressure, events=parts.events
        )
        self._maintenance: Maintenance | None = None
        self._shared, self._sources = parts.shared, parts.sources
        self.repairer = NodeRepairer(self.engine, parts.open_reader, parts.sources, parts.events)

    def pull(self, request: PullRequest) -> Pull:
        """Start a pull; returns its handle."""
        pull = self._puller.start(request)
        self.activity.began(str(request.image), request.variant, pull)
        return pull

    @property
    def downloads(self) -> Downloads:
        """Files being downloaded."""
        return self._puller.downloads

    def check(self, *, repair: bool = False, quick: bool = False) -> CheckView:
        """Check the store's invariants; with `repair`, repair what is possible and report it.

        Raises Busy for a repair while pulls run.
        """
        # A repair moves files that running pulls rely on.
        if repair and self._puller.busy:
            raise Busy("pulls are running", hint="Repair when they are done.")
        return ConsistencyCheck(self.store, self.repairer, quick, self._puller.busy).run(
            repair=repair
        )

    def reconfigure(self, config: AgentConfig) -> None:
        """Apply new settings: signatures, space, bandwidth, maintenance and tiers. All others need a restart."""
        options = NodeOptions.of(self.options.root, config)
        # First, since it may raise: then nothing has changed.
        self.trust.reconfigure(options.signatures)
        self.store.set_limits(options.limits)
        self.engine.set_bandwidth(options.engine.bandwidth)
        if isinstance(self._sources, Tiers):
            rate = Amount.parse(config.fetch.bandwidth_per_source).bytes
            self._sources.reconfigure(config.tiers, rate)
        self.warmer.budget, self.warmer.pressure_limit = (
            options.memory_budget,
            options.memory_pressure,
        )
        if self._maintenance is not None:
            self._maintenance.reconfigure(options.maintenance)

    def start_maintenance(self) -> None:
        """Start scrubbing and expiring leases; only the agent does, not single commands."""
        self._maintenance = Maintenance(
            self.store, self.repairer, self.options.maintenance, self._shared, self.warmer.relieve
        )
        self._maintenance.start()

    def health_parts(self) -> Mapping[str, Callable[[], str | None]]:
        """Readiness checks beyond the store's own."""
        return {"maintenance": self._maintenance.problem} if self._maintenance else {}

    def _cache_manifests(self, parts: NodeParts) -> Published:
        def keep(request: PullRequest, resolved: ResolvedSource, reader: ImageReader) -> None:
            image = request.image
            try:
                cache_manifests(self.manifest_cache, image, resolved, reader)
                # A local image, or one read with the caller's own reader, says nothing about public access.
                if not isinstance(image, RegistryReference) or request.reader is not None:
                    return
                if parts.is_anonymous(image):
                    # What was read without credentials is public.
                    self.manifest_cache.note_public(repository_of(image), parts.clock())
            except WeightyardError as error:
                if error.fault is Fault.NODE:
                    raise
                # The model is complete; only a container runtime that pulls the
                # image has to use the registry for the rest.
                parts.events.unshelved(str(image), error.message)

        return keep

    def cancel_pulls(self) -> None:
        """Cancel running pulls; `close` waits for them."""
        self._puller.cancel_all()

    def close(self) -> None:
        if self._maintenance:
            self._maintenance.stop()
        # Threads first, the store last: a pull that ends late still writes to the ledger.
        self._puller.close()
        self.engine.close()
        if self.peers is not None:
            self.peers.close()
        self.store.close()

    def __enter__(self) -> Node:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
