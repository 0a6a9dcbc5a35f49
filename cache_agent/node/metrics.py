"""Prometheus metrics of one agent, in a registry of its own: no globals.

The tables `COUNTERS`, `ENGINE_COUNTERS`, `HISTOGRAMS` and `GAUGES` list every metric with its name, help and labels,
and how it follows from the node's events, its engine or its store. Counters come in started/finished pairs, to show
what hangs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cache_agent.api.build_info import export_build_info
from cache_agent.api.exposition import exemplar, exposition
from cache_agent.fetch.engine import FetchEngine
from cache_agent.observability.events import (
    DesiredModelFailed,
    DesiredModelReady,
    Event,
    Events,
    FileDamaged,
    FileRepaired,
    FileScrubbed,
    LeaseExpired,
    MaintenanceFailed,
    ManifestsNotCached,
    ModelEvicted,
    ModelWarmed,
    PeerEjected,
    PeerRequestRefused,
    PeerSent,
    PublishEnded,
    PublishStarted,
    PullEnded,
    PullStarted,
    ReservationRefused,
)
from cache_agent.observability.series import MOST_SERIES, bounded
from cache_agent.store.roots import Roots
from cache_agent.store.space import SpaceView
from cache_agent.store.values import StoredModel

PREFIX: Final = "weightyard_"

E = TypeVar("E")
M = TypeVar("M", Counter, Histogram)
# The values of a metric's labels, in their order, and an amount.
Samples = Iterable[tuple[tuple[str, ...], float]]


@dataclass(frozen=True, slots=True)
class EventMetric(Generic[E]):
    """A counter or histogram fed by one kind of event: each sample is added, or observed. By default an event counts 1.

    Prometheus adds `_total` to a counter's name. `buckets` are a histogram's upper bounds.
    """

    name: str
    help: str
    event: type[E]
    samples: Callable[[E], Samples] = lambda event: [((), 1)]
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class StoreSnapshot:
    """What the gauges of one scrape are computed from.

    `spaces`: by root directory. `requests`: range requests that wait and that run.
    """

    spaces: Sequence[tuple[str, SpaceView]]
    models: Sequence[StoredModel]
    files: int
    requests: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class StoreGauge:
    """A gauge, read from the store when scraped."""

    name: str
    help: str
    samples: Callable[[StoreSnapshot], Samples]
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EngineCounter:
    """A counter that the engine keeps, read when scraped: it moves while transfers run. Its name: see `EventMetric`."""

    name: str
    help: str
    samples: Callable[[FetchEngine], Samples]
    labels: tuple[str, ...] = ()


MetricRow = EventMetric[Any] | EngineCounter | StoreGauge


def _space(name: str, text: str, read: Callable[[SpaceView], int]) -> StoreGauge:
    """A gauge of each root's space."""
    return StoreGauge(
        name, text, lambda now: [((root,), read(space)) for root, space in now.spaces], ("root",)
    )


COUNTERS: Final[tuple[EventMetric[Any], ...]] = (
    EventMetric("pulls_started", "Pulls started.", PullStarted),
    EventMetric(
        "pulls_finished", "Pulls ended, by outcome; pulls started beyond these run or hang.",
        PullEnded, lambda end: [((end.outcome,), 1)], ("outcome",),
    ),
    EventMetric("reused_bytes", "Bytes that were in the store already.", PullEnded, lambda end: [((), end.reused)]),
    EventMetric(
        "warmed_bytes", "Bytes that warming read into memory.", ModelWarmed, lambda warm: [((), warm.brought)]
    ),
    EventMetric(
        "warm_hit_bytes", "Bytes that warming found in memory.", ModelWarmed, lambda warm: [((), warm.found)]
    ),
    EventMetric(
        "manifests_not_cached", "Pulled models whose manifests could not be cached for container runtimes.",
        ManifestsNotCached,
    ),
    EventMetric("publishes_started", "Requests of kubelet to publish a volume.", PublishStarted),
    EventMetric(
        "publishes_finished", "Such requests answered, by outcome; `StillPulling` ones are repeated by kubelet.",
        PublishEnded, lambda end: [((end.outcome,), 1)], ("outcome",),
    ),
    EventMetric(
        "published_bytes", "Bytes of published volumes, by where they were: `cached` on the node, or another tier.",
        PublishEnded, lambda end: [((tier,), size) for tier, size in end.by_tier], ("tier",),
    ),
    EventMetric(
        "evictions", "Models evicted or removed, by what for: a `pull`, `prewarming`, `gc`, or `removal` by hand.",
        ModelEvicted, lambda each: [((each.reason.value,), 1)], ("reason",),
    ),
    EventMetric(
        "evicted_bytes", "Bytes freed by that, by reason.",
        ModelEvicted, lambda each: [((each.reason.value,), each.freed)], ("reason",),
    ),
    EventMetric("reservations_refused", "Pulls refused for lack of space.", ReservationRefused),
    EventMetric(
        "desired_model_failures", "Desired models that could not be had, by reason.",
        DesiredModelFailed, lambda failure: [((failure.reason,), 1)], ("reason",),
    ),
    EventMetric("leases_expired", "Leases that ended because their holder was gone.", LeaseExpired),
    EventMetric("maintenance_failures", "Maintenance rounds that failed in part.", MaintenanceFailed),
    EventMetric(
        "scrubbed_bytes", "Bytes that the scrub read again.", FileScrubbed, lambda file: [((), file.size)]
    ),
    EventMetric("damaged_files", "Files found damaged at rest.", FileDamaged),
    EventMetric(
        "repaired_chunks", "Chunks fetched again to repair a file.", FileRepaired, lambda file: [((), file.chunks)]
    ),
    EventMetric("repaired_files", "Damaged files repaired.", FileRepaired),
    EventMetric("peer_sent_bytes", "Bytes sent to other nodes.", PeerSent, lambda sent: [((), sent.size)]),
    EventMetric(
        "peers_ejected", "Peers temporarily ejected, by reason.",
        PeerEjected, lambda peer: [((peer.reason,), 1)], ("reason",),
    ),
    EventMetric(
        "peer_requests_refused", "Requests of peers that were refused, by reason.",
        PeerRequestRefused, lambda refused: [((refused.reason,), 1)], ("reason",),
    ),
)  # fmt: skip

ENGINE_COUNTERS: Final = (
    EngineCounter(
        "fetched_bytes",
        "Bytes that came from each tier and source, counted as they arrive: also those of failed pulls and of repairs, "
        "and those that were discarded because they were wrong.",
        lambda engine: engine.fetched_bytes().items(), ("tier", "source"),
    ),
)  # fmt: skip

HISTOGRAMS: Final[tuple[EventMetric[Any], ...]] = (
    EventMetric(
        "publish_seconds", "Seconds from kubelet's first request for a volume until it is mounted.",
        PublishEnded, lambda end: [] if end.seconds is None else [((), end.seconds)],
        buckets=(0.01, 0.05, 0.1, 0.5, 1, 5, 15, 60, 180, 600, 1800, 3600),
    ),
    EventMetric(
        "desired_ready_seconds", "Seconds from when a model was desired, or lost, until it was held as desired.",
        DesiredModelReady, lambda ready: [((), ready.seconds)],
        buckets=(1, 5, 15, 60, 180, 600, 1800, 3600, 14400, 86400),
    ),
    EventMetric(
        "pull_seconds", "Seconds from a pull's start until the model is verified on disk.",
        # Failed pulls would distort it.
        PullEnded, lambda end: [((), end.seconds)] if end.outcome == "done" else [],
        buckets=(0.1, 0.5, 1, 5, 15, 60, 180, 600, 1800, 3600),
    ),
)  # fmt: skip

GAUGES: Final = (
    _space("store_bytes", "Bytes of files and partial downloads.", lambda space: space.own),
    _space(
        "store_promised_bytes", "Bytes that running pulls reserved; a file counts as stored from its first byte.",
        lambda space: space.promised,
    ),
    _space("store_budget_bytes", "Bytes that the store may use.", lambda space: space.budget),
    _space("disk_free_bytes", "Free bytes of the store's filesystem.", lambda space: space.disk_free),
    _space("disk_min_free_bytes", "Bytes of the filesystem that the store leaves free.", lambda space: space.min_free),
    StoreGauge("models", "Models cached.", lambda now: [((), len(now.models))]),
    StoreGauge("models_pinned", "Models pinned.", lambda now: [((), sum(each.pinned for each in now.models))]),
    StoreGauge("leases", "Leases held.", lambda now: [((), sum(len(each.leases) for each in now.models))]),
    StoreGauge("files", "Weight files cached.", lambda now: [((), now.files)]),
    StoreGauge(
        "oldest_verification_timestamp_seconds",
        "When the least recently checked file of all cached models was checked; absent without models.",
        lambda now: [((), min(each.verified for each in now.models))] if now.models else [],
    ),
    StoreGauge("fetch_requests_waiting", "Range requests that wait for a worker.", lambda now: [((), now.requests[0])]),
    StoreGauge("fetch_requests_running", "Range requests under way.", lambda now: [((), now.requests[1])]),
)  # fmt: skip


MODEL_LABELS: Final = ("model", "image", "variant")
MODEL_GAUGES: Final[tuple[tuple[str, str, Callable[[StoredModel], float]], ...]] = (
    ("model_bytes", "Bytes of the model's files, with those that it shares.", lambda each: each.size),
    ("model_files", "Files of the model.", lambda each: each.files),
    ("model_uses", "How often it was used; older uses count less.", lambda each: each.uses),
    ("model_last_used_timestamp_seconds", "When it was used last.", lambda each: each.last_used),
    (
        "model_verified_timestamp_seconds", "When the least recently checked of its files was checked.",
        lambda each: each.verified,
    ),
    ("model_fetch_seconds", "What its fetch took.", lambda each: each.fetch_seconds),
    ("model_pinned", "1 for a pinned model.", lambda each: each.pinned),
    ("model_leases", "Leases of the model.", lambda each: len(each.leases)),
)  # fmt: skip


class Metrics(Events):
    """One agent's metrics: counts events, and reads gauges from the watched store.

    `traced`: spans are exported, so that histograms have exemplars with the ids of traces.
    """

    def __init__(self, *, traced: bool = False) -> None:
        self.registry = CollectorRegistry()
        # Per model: scraped only by who asks for it, as clusters have many.
        self.detail = CollectorRegistry()
        self._traced = traced
        export_build_info(self.registry, "agent")
        self._feeds: dict[type[Event], list[Callable[[Any], None]]] = {}
        for row in COUNTERS:
            counter = Counter(PREFIX + row.name, row.help, row.labels, registry=self.registry)
            self._feed(row, counter, lambda each, amount, _: each.inc(amount))
        for row in HISTOGRAMS:
            histogram = Histogram(
                PREFIX + row.name,
                row.help,
                row.labels,
                buckets=row.buckets,
                registry=self.registry,
            )
            self._feed(row, histogram, Histogram.observe)

    def _feed(
        self, row: EventMetric[Any], metric: M, add: Callable[[M, float, dict[str, str] | None], None]
    ) -> None:  # fmt: skip
        seen: set[tuple[str, ...]] = set()

        def feed(event: Any) -> None:
            found = exemplar(getattr(event, "trace", "")) if self._traced else None
            for labels, amount in row.samples(event):
                add(metric.labels(*bounded(labels, seen)) if labels else metric, amount, found)

        self._feeds.setdefault(row.event, []).append(feed)

    def watch(self, roots: Roots, engine: FetchEngine) -> None:
        """Export the counters of a node's engine, and the gauges of it and of the open roots."""
        self.registry.register(_EngineCounters(engine))
        self.registry.register(_StoreGauges(roots, engine))
        self.detail.register(_ModelGauges(roots))

    def emit(self, event: Event) -> None:
        for feed in self._feeds.get(type(event), ()):
            feed(event)

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """The page and its content type. `accept`: the scraper's header."""
        return exposition(self.registry, accept, traced=self._traced)

    def detail_exposition(self) -> tuple[bytes, str]:
        """The page of single models and its content type."""
        return exposition(self.detail, "", traced=False)


class _EngineCounters(Collector):
    """Counters read from the engine at each scrape. They begin with it."""

    def __init__(self, engine: FetchEngine) -> None:
        self._engine = engine
        self._created = time.time()

    def describe(self) -> Iterable[Metric]:
        """Empty: see `_StoreGauges`."""
        return ()

    def collect(self) -> Iterator[Metric]:
        for row in ENGINE_COUNTERS:
            family = CounterMetricFamily(PREFIX + row.name, row.help, labels=row.labels)
            for labels, value in row.samples(self._engine):
                family.add_metric(labels, value, created=self._created)
            yield family


class _StoreGauges(Collector):
    """Gauges read from the store at each scrape."""

    def __init__(self, roots: Roots, engine: FetchEngine) -> None:
        self._roots, self._engine = roots, engine

    def describe(self) -> Iterable[Metric]:
        """Empty: the registry calls it only for names, which aren't worth reading the store."""
        return ()

    def collect(self) -> Iterator[Metric]:
        roots = self._roots
        now = StoreSnapshot(
            [(str(store.paths.root), space) for store, space in roots.spaces()],
            roots.models.all(),
            roots.files.count(),
            self._engine.load(),
        )
        for row in GAUGES:
            family = GaugeMetricFamily(PREFIX + row.name, row.help, labels=row.labels)
            for labels, value in row.samples(now):
                family.add_metric(labels, value)
            yield family


class _ModelGauges(Collector):
    """Gauges of single models, read from the store at each scrape."""

    def __init__(self, roots: Roots) -> None:
        self._roots = roots

    def describe(self) -> Iterable[Metric]:
        """Empty: see `_StoreGauges`."""
        return ()

    def collect(self) -> Iterator[Metric]:
        models = self._roots.models.all()[:MOST_SERIES]
        for name, text, read in MODEL_GAUGES:
            family = GaugeMetricFamily(PREFIX + name, text, labels=MODEL_LABELS)
            for each in models:
                family.add_metric((each.key.short, each.image, each.variant), read(each))
            yield family
