"""Prometheus metrics of one agent, in a registry of its own: no globals.

The tables `COUNTERS`, `HISTOGRAMS` and `GAUGES` list every metric with its name, help and labels, and how it follows
from the node's events or its store. Counters come in started/finished pairs, to show what hangs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cache_agent.api.build_info import export_build_info
from cache_agent.fetch.engine import FetchEngine
from cache_agent.observability.events import (
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
from cache_agent.store.roots import Roots
from cache_agent.store.space import SpaceView
from cache_agent.store.values import StoredModel

_TEXT = "text/plain; version=0.0.4; charset=utf-8"
PREFIX: Final = "weightyard_"
MOST_SERIES: Final = 1000  # of one metric

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
    EventMetric(
        "fetched_bytes", "Bytes that came from each tier and source.",
        PullEnded, lambda end: [((tier, name), size) for tier, name, size in end.by_source], ("tier", "source"),
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
    EventMetric("evictions", "Models evicted for space.", ModelEvicted),
    EventMetric("evicted_bytes", "Bytes freed by evictions.", ModelEvicted, lambda each: [((), each.freed)]),
    EventMetric("reservations_refused", "Pulls refused for lack of space.", ReservationRefused),
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

HISTOGRAMS: Final[tuple[EventMetric[Any], ...]] = (
    EventMetric(
        "publish_seconds", "Seconds from kubelet's first request for a volume until it is mounted.",
        PublishEnded, lambda end: [] if end.seconds is None else [((), end.seconds)],
        buckets=(0.01, 0.05, 0.1, 0.5, 1, 5, 15, 60, 180, 600, 1800, 3600),
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
    _space("store_promised_bytes", "Bytes that running pulls may still write.", lambda space: space.promised),
    _space("store_budget_bytes", "Bytes that the store may use.", lambda space: space.budget),
    _space("disk_free_bytes", "Free bytes of the store's filesystem.", lambda space: space.disk_free),
    _space("disk_min_free_bytes", "Bytes of the filesystem that the store leaves free.", lambda space: space.min_free),
    StoreGauge("models", "Models cached.", lambda now: [((), len(now.models))]),
    StoreGauge("models_pinned", "Models pinned.", lambda now: [((), sum(each.pinned for each in now.models))]),
    StoreGauge("leases", "Leases held.", lambda now: [((), sum(len(each.leases) for each in now.models))]),
    StoreGauge("files", "Weight files cached.", lambda now: [((), now.files)]),
    StoreGauge(
        "oldest_verification_timestamp_seconds",
        "When the file of a cached model that was checked longest ago was checked; absent without models.",
        lambda now: [((), min(each.verified for each in now.models))] if now.models else [],
    ),
    StoreGauge("fetch_requests_waiting", "Range requests that wait for a worker.", lambda now: [((), now.requests[0])]),
    StoreGauge("fetch_requests_running", "Range requests under way.", lambda now: [((), now.requests[1])]),
)  # fmt: skip


def bounded(labels: tuple[str, ...], seen: set[tuple[str, ...]]) -> tuple[str, ...]:
    """A metric's labels, the last one `other` where too many were seen. Adds them to `seen`."""
    # A label is kept for ever, here and by whoever scrapes; sources are named after repositories, which images name.
    if labels not in seen and len(seen) >= MOST_SERIES:
        return (*labels[:-1], "other")
    seen.add(labels)
    return labels


class Metrics(Events):
    """One agent's metrics: counts events, and reads gauges from the watched store."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        export_build_info(self.registry, "agent")
        self._feeds: dict[type[Event], list[Callable[[Any], None]]] = {}
        for row in COUNTERS:
            counter = Counter(PREFIX + row.name, row.help, row.labels, registry=self.registry)
            self._feed(row, counter, Counter.inc)
        for row in HISTOGRAMS:
            histogram = Histogram(
                PREFIX + row.name,
                row.help,
                row.labels,
                buckets=row.buckets,
                registry=self.registry,
            )
            self._feed(row, histogram, Histogram.observe)

    def _feed(self, row: EventMetric[Any], metric: M, add: Callable[[M, float], None]) -> None:
        seen: set[tuple[str, ...]] = set()

        def feed(event: Any) -> None:
            for labels, amount in row.samples(event):
                add(metric.labels(*bounded(labels, seen)) if labels else metric, amount)

        self._feeds.setdefault(row.event, []).append(feed)

    def watch(self, roots: Roots, engine: FetchEngine) -> None:
        """Export the gauges of a node's open roots and of its engine."""
        self.registry.register(_StoreGauges(roots, engine))

    def emit(self, event: Event) -> None:
        for feed in self._feeds.get(type(event), ()):
            feed(event)

    def exposition(self) -> tuple[bytes, str]:
        """The text format and its content type."""
        encode, content_type = choose_encoder(_TEXT)
        return encode(self.registry), content_type


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
