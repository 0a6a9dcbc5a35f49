"""Prometheus metrics of one controller, in a registry of its own: no globals.

The tables list every metric with its name, help and labels. Passes come in started/finished pairs, to show what hangs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cache_agent.api.build_info import export_build_info
from cache_agent.api.exposition import exemplar, exposition
from modelimage import spans
from workspace.controller.process.workers import Passes
from workspace.startup import StageName, Startup

PREFIX: Final = "weightyard_controller_"
# What a status says of tiers is an agent's word: others have no series.
_TIERS: Final = frozenset({"memory", "disk", "peer", "shared", "registry", "hub", "cached"})
Samples = Mapping[tuple[str, ...], float]


@dataclass(frozen=True, slots=True)
class MetricRow:
    """A counter or histogram. Prometheus adds `_total` to a counter's name."""

    name: str
    help: str
    labels: tuple[str, ...]
    buckets: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class ControllerSnapshot:
    """What the gauges of one scrape are computed from: queued objects by kind, Workspaces by their Ready reason.

    `rollouts`: Workspaces by the phase of their last rollout; `versions`: those that are kept.
    """

    leads: bool
    waiting: Mapping[str, int]
    workspaces: Mapping[str, int]
    failing_watches: int
    rollouts: Mapping[str, int] = field(default_factory=dict)
    versions: int = 0


@dataclass(frozen=True, slots=True)
class SnapshotGauge:
    """A gauge, read when scraped."""

    name: str
    help: str
    samples: Callable[[ControllerSnapshot], Samples]
    labels: tuple[str, ...] = ()


STARTED: Final = MetricRow("passes_started", "Passes over an object started, by kind.", ("kind",))
FINISHED: Final = MetricRow(
    "passes_finished",
    "Passes ended, by outcome: `done`, an error's class, or `bug`; those started beyond these run or hang.",
    ("kind", "outcome"),
)
SECONDS: Final = MetricRow(
    "pass_seconds", "Seconds that a pass over an object took.", ("kind",),
    buckets=(0.01, 0.05, 0.1, 0.5, 1, 5, 15, 60),
)  # fmt: skip
STAGES: Final = MetricRow(
    "start_stage_seconds", "Seconds that a stage of a server's start took, once it is healthy, by stage.", ("stage",),
    buckets=(0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800),
)  # fmt: skip
STARTS: Final = MetricRow(
    "start_seconds", "Seconds from a server's pod or its restart to the first health check.", (),
    buckets=(5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600),
)  # fmt: skip
FIRST_TOKENS: Final = MetricRow(
    "first_token_seconds",
    "Seconds from a server's pod or its restart to the first token, by the tier that most of its model came from; "
    "`unknown` where no agent told.",
    ("tier",), buckets=(5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600),
)  # fmt: skip
READIES: Final = MetricRow(
    "ready_seconds", "Seconds from when a Workspace was created, or wasn't Ready any more, until it is Ready.", (),
    buckets=(5, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600, 14400),
)  # fmt: skip
EVENTS: Final = MetricRow("events", "Kubernetes Events recorded, by reason.", ("reason",))

SCALINGS: Final = MetricRow(
    "scalings",
    "Decisions of the built-in autoscaler to run more or fewer replicas, by direction and reason: `waking`, `queue`, "
    "`idle` or `bounds`.",
    ("direction", "reason"),
)

PROBES: Final = MetricRow(
    "probes",
    "Probes asked of new versions, by outcome: `passed`, `failed`, `both_failed` (the serving version fails it too), "
    "`unanswered`.",
    ("outcome",),
)

COUNTERS: Final = (STARTED, FINISHED, EVENTS, SCALINGS, PROBES)
HISTOGRAMS: Final = (SECONDS, STAGES, STARTS, FIRST_TOKENS, READIES)
GAUGES: Final = (
    SnapshotGauge("leads", "1 for the controller that leads.", lambda now: {(): now.leads}),
    SnapshotGauge(
        "queue_length", "Objects that wait for a pass or have one, by kind.",
        lambda now: {(kind,): count for kind, count in now.waiting.items()}, ("kind",),
    ),
    SnapshotGauge(
        "workspaces", "Workspaces by the reason of their Ready condition; the leader's only.",
        lambda now: {(reason,): count for reason, count in now.workspaces.items()}, ("reason",),
    ),
    SnapshotGauge(
        "rollouts", "Workspaces by the phase of their last rollout beside the version that serves.",
        lambda now: {(phase,): count for phase, count in now.rollouts.items()}, ("phase",),
    ),
    SnapshotGauge("versions", "Versions of Workspaces that are kept.", lambda now: {(): now.versions}),
    SnapshotGauge(
        "failing_watches", "Kinds of objects that can't be watched.", lambda now: {(): now.failing_watches}
    ),
)  # fmt: skip


class Metrics:
    """One controller's metrics."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        export_build_info(self.registry, "controller")
        self._scalings = self._counter(SCALINGS)
        self._probes = self._counter(PROBES)
        self._started = self._counter(STARTED)
        self._finished = self._counter(FINISHED)
        self._events = self._counter(EVENTS)
        self._seconds = self._histogram(SECONDS)
        self._stages = self._histogram(STAGES)
        self._starts = self._histogram(STARTS)
        self._first_tokens = self._histogram(FIRST_TOKENS)
        self._readies = self._histogram(READIES)

    def _histogram(self, row: MetricRow) -> Histogram:
        return Histogram(
            PREFIX + row.name, row.help, row.labels, buckets=row.buckets, registry=self.registry
        )

    def _counter(self, row: MetricRow) -> Counter:
        return Counter(PREFIX + row.name, row.help, row.labels, registry=self.registry)

    def passes(self, kind: str) -> Passes:
        """The listener for the passes over one kind of object."""
        return _CountedPasses(
            self._started.labels(kind),
            lambda outcome: self._finished.labels(kind, outcome),
            self._seconds.labels(kind),
        )

    def recorded(self, reason: str) -> None:
        """Counts a Kubernetes Event."""
        self._events.labels(reason).inc()

    def started(self, start: Startup, trace: str = "") -> None:
        """Counts a start that became healthy. `trace`: its version's `traceparent`."""
        self._starts.observe(start.total or 0.0, _exemplar(trace))
        for stage in start.stages:
            # Parts by tier overlap and are within the volume's stage: counted
            # too, they would double its seconds.
            if stage.tier is None and stage.name != StageName.FIRST_TOKEN:
                self._stages.labels(stage.name).observe(stage.seconds)

    def first_token(self, start: Startup, trace: str = "") -> None:
        """Counts a server's first token."""
        for stage in start.stages:
            if stage.name == StageName.FIRST_TOKEN:
                self._stages.labels(StageName.FIRST_TOKEN.value).observe(stage.seconds)
        tier = start.main_tier if start.main_tier in _TIERS else "unknown"
        seconds = start.ends[StageName.FIRST_TOKEN]
        self._first_tokens.labels(tier).observe(seconds, _exemplar(trace))

    def ready(self, seconds: float, trace: str = "") -> None:
        """Counts a Workspace that is Ready after some seconds."""
        self._readies.observe(seconds, _exemplar(trace))

    def scaled(self, direction: Literal["up", "down"], reason: str) -> None:
        """Counts a decision of the autoscaler."""
        self._scalings.labels(direction, reason).inc()

    def probed(self, outcome: str) -> None:
        """Counts a probe that was asked."""
        self._probes.labels(outcome).inc()

    def watch(self, snapshot: Callable[[], ControllerSnapshot]) -> None:
        """Exports the gauges."""
        self.registry.register(_Gauges(snapshot))

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """The page and its content type. `accept`: the scraper's header."""
        return exposition(self.registry, accept, traced=spans.provider() is not None)


def _exemplar(trace: str) -> dict[str, str] | None:
    # Without tracing no trace was stored under this id.
    return exemplar(trace) if spans.provider() is not None else None


class _CountedPasses(Passes):
    def __init__(
        self, started: Counter, finished: Callable[[str], Counter], seconds: Histogram
    ) -> None:
        self._started, self._finished, self._seconds = started, finished, seconds

    def started(self) -> None:
        self._started.inc()

    def finished(self, outcome: str, seconds: float) -> None:
        self._finished(outcome).inc()
        self._seconds.observe(seconds)


class _Gauges(Collector):
    """Gauges read at each scrape."""

    def __init__(self, snapshot: Callable[[], ControllerSnapshot]) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        now = self._snapshot()
        for row in GAUGES:
            family = GaugeMetricFamily(PREFIX + row.name, row.help, labels=row.labels)
            for labels, value in row.samples(now).items():
                family.add_metric(labels, float(value))
            yield family
