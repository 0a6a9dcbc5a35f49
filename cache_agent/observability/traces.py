"""Exports pulls as OpenTelemetry spans: one per pull, with a child span for each phase. Off without a collector.

`OTEL_EXPORTER_OTLP_ENDPOINT` (or `..._TRACES_ENDPOINT`) turns it on. OpenTelemetry's own variables set headers,
sampling and resource attributes. Its packages are imported only when it is on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from cache_agent.observability.events import Event, Events, PullEnded

SERVICE: Final = "weightyard-agent"
_PATIENCE_SECONDS: Final = 2.0
_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


@dataclass
class Traces(Events):
    """Records the spans of a pull once it has ended. `clock` returns seconds since the epoch."""

    provider: Any
    clock: Callable[[], float]

    def emit(self, event: Event) -> None:
        if isinstance(event, PullEnded):
            self._export(event)

    def _export(self, end: PullEnded) -> None:
        from opentelemetry import trace  # noqa: PLC0415 - see above

        # Made after the end with explicit times, so that a pull's threads carry no tracing context.
        tracer = self.provider.get_tracer("weightyard")
        began = self.clock() - end.seconds
        attributes = {
            "weightyard.image": end.image,
            "weightyard.outcome": end.outcome,
            "weightyard.reused_bytes": end.reused,
            **{f"weightyard.fetched_bytes.{tier}": n for tier, n in _by_tier(end).items()},
        }
        span = tracer.start_span("pull", start_time=_ns(began), attributes=attributes)
        if end.outcome != "done":
            span.set_status(trace.Status(trace.StatusCode.ERROR, end.message))
        parent = trace.set_span_in_context(span)
        ends = [*(at for _, at in end.phases[1:]), end.seconds]
        for (name, at), until in zip(end.phases, ends, strict=True):
            child = tracer.start_span(name, context=parent, start_time=_ns(began + at))
            child.end(_ns(began + until))
        span.end(_ns(began + end.seconds))

    def close(self) -> None:
        """Send the remaining spans; returns when they are sent or the exporter has given up."""
        self.provider.shutdown()


def open_traces(environ: Mapping[str, str], clock: Callable[[], float]) -> Traces | None:
    """Traces to the collector that the environment names; None when it names none."""
    if not any(environ.get(name) for name in _ENDPOINTS):
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
        OTLPSpanExporter,
    )
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    name = environ.get("OTEL_SERVICE_NAME", SERVICE)
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    # Short, because a collector that is down must not delay the agent's shutdown.
    patience = None if environ.get("OTEL_EXPORTER_OTLP_TIMEOUT") else _PATIENCE_SECONDS
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(timeout=patience)))
    return Traces(provider, clock)


def _by_tier(end: PullEnded) -> dict[str, int]:
    sums: dict[str, int] = {}
    for tier, _, size in end.by_source:
        sums[tier] = sums.get(tier, 0) + size
    return sums


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
