"""Prometheus metrics of one agent, in a registry of its own: no globals.

Counters come in started/finished pairs, to show what hangs. Gauges are read when scraped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cache_agent.observability.events import Events, PullEnd
from cache_agent.store.roots import Roots
from cache_agent.store.space import SpaceView

_TEXT = "text/plain; version=0.0.4; charset=utf-8"


class Metrics(Events):
    """One agent's metrics: counts events, and reads gauges from the watched store."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.pulls_started = self._counter("pulls_started", "Pulls begun.")
        self.pulls_finished = self._counter("pulls_finished", "Pulls ended, by outcome.", "outcome")
        self.bytes_fetched = self._counter(
            "fetched_bytes", "Bytes that came from each tier and source.", "tier", "source"
        )
        self.bytes_reused = self._counter("reused_bytes", "Bytes that were on the disk already.")
        self.bytes_warmed = self._counter("warmed_bytes", "Bytes that warming brought into memory.")
        self.bytes_warm_hit = self._counter("warm_hit_bytes", "Bytes that warming found in memory.")
        self.evictions = self._counter("evictions", "Models evicted for space.")
        self.evicted_bytes = self._counter("evicted_bytes", "Bytes freed by evictions.")
        self.reservations_refused = self._counter(
            "reservations_refused", "Pulls refused for want of space."
        )
        self.leases_expired = self._counter("leases_expired", "Leases whose holder was gone.")
        self.upkeep_failures = self._counter(
            "upkeep_failures", "Rounds of upkeep that couldn't do all that was due."
        )
        self.scrubbed_bytes = self._counter("scrubbed_bytes", "Bytes read again by the scrubber.")
        self.damaged_files = self._counter("damaged_files", "Files found damaged at rest.")
        self.repaired_chunks = self._counter("repaired_chunks", "Chunks fetched again to repair.")
        self.peer_sent_bytes = self._counter("peer_sent_bytes", "Bytes sent to other nodes.")
        self.peers_ejected = self._counter(
            "peers_ejected", "Times that a peer was left alone for a while, by reason.", "reason"
        )
        self.peer_requests_refused = self._counter(
            "peer_requests_refused", "Requests at the peers' port that were refused.", "reason"
        )
        self.pull_seconds = Histogram(
            "weightyard_pull_seconds",
            "From asking for a model to having it verified on the disk.",
            registry=self.registry,
            buckets=(0.1, 0.5, 1, 5, 15, 60, 180, 600, 1800, 3600),
        )

    def watch(self, roots: Roots) -> None:
        """Export the gauges of a node's open roots."""
        self.registry.register(_StoreGauges(roots))

    def pull_started(self, image: str) -> None:
        self.pulls_started.inc()

    def pull_ended(self, end: PullEnd) -> None:
        self.pulls_finished.labels(end.outcome).inc()
        self.bytes_reused.inc(end.reused)
        for tier, source, size in end.by_source:
            self.bytes_fetched.labels(tier, source).inc(size)
        # Failed pulls would distort the histogram.
        if end.outcome == "done":
            self.pull_seconds.observe(end.seconds)

    def warmed(self, brought: int, found: int) -> None:
        self.bytes_warmed.inc(brought)
        self.bytes_warm_hit.inc(found)

    def evicted(self, image: str, freed: int, why: str) -> None:
        self.evictions.inc()
        self.evicted_bytes.inc(freed)

    def refused(self, need: int) -> None:
        self.reservations_refused.inc()

    def scrubbed(self, size: int) -> None:
        self.scrubbed_bytes.inc(size)

    def damaged(self, file: str, detail: str) -> None:
        self.damaged_files.inc()

    def repaired(self, file: str, chunks: int) -> None:
        self.repaired_chunks.inc(chunks)

    def upkeep_failed(self, detail: str) -> None:
        self.upkeep_failures.inc()

    def expired(self, lease: str, holder: str) -> None:
        self.leases_expired.inc()

    def peer_sent(self, peer: str, size: int) -> None:
        self.peer_sent_bytes.inc(size)

    def peer_ejected(self, peer: str, why: str) -> None:
        self.peers_ejected.labels(why).inc()

    def peer_refused(self, why: str) -> None:
        self.peer_requests_refused.labels(why).inc()

    def exposition(self) -> tuple[bytes, str]:
        """The text format and its content type."""
        encode, content_type = choose_encoder(_TEXT)
        return encode(self.registry), content_type

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"weightyard_{name}", text, labels, registry=self.registry)


class _StoreGauges(Collector):
    """Gauges read from the store at each scrape."""

    def __init__(self, roots: Roots) -> None:
        self._roots = roots

    def describe(self) -> Iterable[Metric]:
        """Empty: the registry calls it only for names, which aren't worth reading the store."""
        return ()

    def collect(self) -> Iterable[Metric]:
        spaces = [(str(store.paths.root), space) for store, space in self._roots.spaces()]
        for name, text, read in _SPACE:
            family = GaugeMetricFamily(f"weightyard_{name}", text, labels=["root"])
            for root, space in spaces:
                family.add_metric([root], read(space))
            yield family
        models = self._roots.models()
        yield _gauge("models", "Models cached.", len(models))
        yield _gauge("models_pinned", "Models pinned.", sum(model.pinned for model in models))
        yield _gauge("leases", "Leases held.", sum(len(model.leases) for model in models))
        yield _gauge("files", "Weight files cached.", self._roots.file_count())


_SPACE: tuple[tuple[str, str, Callable[[SpaceView], int]], ...] = (
    ("store_bytes", "Bytes of files and partial downloads.", lambda space: space.own),
    ("store_promised_bytes", "Bytes that running pulls may still write.", lambda space: space.promised),
    ("store_budget_bytes", "Bytes that the store may use.", lambda space: space.budget),
    ("disk_free_bytes", "Free bytes of the store's filesystem.", lambda space: space.disk_free),
    ("disk_min_free_bytes", "Free bytes that the store leaves to others.", lambda space: space.min_free),
)  # fmt: skip


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"weightyard_{name}", text, value=value)
