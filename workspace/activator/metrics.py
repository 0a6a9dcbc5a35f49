"""Prometheus metrics of one activator, read by the scaler and by people."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from cache_agent.api.build_info import export_build_info
from cache_agent.api.exposition import exemplar, exposition
from modelimage import spans
from workspace.activator.gate import RequestQueue
from workspace.server_metrics import HELD

# Gauges, counters and histograms: name and help. Prometheus adds `_total` to a counter's name.
WAITING: Final = (HELD, "Requests that wait for a server.")
PASSED: Final = ("weightyard_activator_requests_passed", "Requests passed to a server.")
REFUSED: Final = (
    "weightyard_activator_requests_refused",
    "Requests rejected because too many were waiting, or for too long.",
)
ENTERED: Final = (
    "weightyard_activator_requests_started",
    "Requests that came; those beyond the passed and the refused wait, or their clients left.",
)
WAITS: Final = (
    "weightyard_activator_wait_seconds",
    "Seconds that a request waited for a server, of those that were passed.",
)
_BUCKETS: Final = (0.1, 1, 5, 15, 30, 60, 120, 300, 600, 1200)
GAUGES: Final = (WAITING,)
COUNTERS: Final = (ENTERED, PASSED, REFUSED)
HISTOGRAMS: Final = (WAITS,)


class ActivatorMetrics:
    """One activator's metrics."""

    def __init__(self, gate: RequestQueue) -> None:
        self.registry = CollectorRegistry()
        # Read at each scrape, so that no way out of the queue can forget to lower it.
        Gauge(*WAITING, registry=self.registry).set_function(lambda: gate.waiting)
        self.entered = Counter(*ENTERED, registry=self.registry)
        self.refused = Counter(*REFUSED, registry=self.registry)
        self._passed = Counter(*PASSED, registry=self.registry)
        self._waits = Histogram(*WAITS, buckets=_BUCKETS, registry=self.registry)
        export_build_info(self.registry, "activator")

    def passed(self, seconds: float) -> None:
        """Count a request that was passed to a server after some seconds."""
        self._passed.inc()
        self._waits.observe(seconds, exemplar(spans.traceparent()))

    def page(self, accept: str = "") -> tuple[bytes, str]:
        """The page and its content type. `accept`: the scraper's header."""
        return exposition(self.registry, accept, traced=spans.provider() is not None)
