"""Prometheus metrics of one activator, read by the scaler and by people."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from cache_agent.api.build_info import export_build_info
from workspace.activator.gate import RequestQueue
from workspace.server_metrics import HELD

# Gauges and counters: name and help. Prometheus adds `_total` to a counter's name.
WAITING: Final = (HELD, "Requests that wait for a server.")
PASSED: Final = ("weightyard_activator_requests_passed", "Requests passed to a server.")
REFUSED: Final = (
    "weightyard_activator_requests_refused",
    "Requests rejected because too many were waiting, or for too long.",
)
GAUGES: Final = (WAITING, PASSED)
COUNTERS: Final = (REFUSED,)


class ActivatorMetrics:
    """One activator's metrics."""

    def __init__(self, gate: RequestQueue) -> None:
        self.registry = CollectorRegistry()
        Gauge(*WAITING, registry=self.registry).set_function(lambda: gate.waiting)
        Gauge(*PASSED, registry=self.registry).set_function(lambda: gate.passed)
        self.refused = Counter(*REFUSED, registry=self.registry)
        export_build_info(self.registry, "activator")

    def page(self) -> bytes:
        """The text format."""
        return generate_latest(self.registry)
