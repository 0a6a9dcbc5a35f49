"""Exports pulls as OpenTelemetry spans: one per pull, with a child for each phase and for each source's transfer.

`modelimage.spans` says what turns it on. Chunks have no spans: a large model has thousands.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from cache_agent.observability.events import Event, Events, PublishEnded, PullEnded
from modelimage.spans import close, context_of, open_provider, provider
from modelimage.trace_headers import is_on

SERVICE: Final = "weightyard-agent"


@dataclass
class Traces(Events):
    """Records the spans of a pull once it has ended. `clock` returns seconds since the epoch."""

    provider: Any
    clock: Callable[[], float]

    def emit(self, event: Event) -> None:
        if isinstance(event, PullEnded):
            self._export(event)
        elif isinstance(event, PublishEnded) and event.trace and event.seconds is not None:
            self._export_publish(event, event.seconds)

    def _export_publish(self, end: PublishEnded, seconds: float) -> None:
        """A span of a pod's volume, where its trace is known: from kubelet's first request to the mount."""
        told = {f"weightyard.bytes.{tier}": size for tier, size in end.by_tier}
        now = self.clock()
        span = self.provider.get_tracer("weightyard").start_span(
            "publish volume", context=context_of(end.trace), start_time=_ns(now - seconds),
            attributes={"k8s.pod.name": end.pod, **told},
        )  # fmt: skip
        span.end(_ns(now))

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
        parent = context_of(end.trace) if end.trace else None
        span = tracer.start_span(
            "pull", context=parent, start_time=_ns(began), attributes=attributes
        )
        if end.outcome != "done":
            span.set_status(trace.Status(trace.StatusCode.ERROR, end.message))
        within = trace.set_span_in_context(span)
        ends = [*(at for _, at in end.phases[1:]), end.seconds]
        for (name, at), until in zip(end.phases, ends, strict=True):
            child = tracer.start_span(name, context=within, start_time=_ns(began + at))
            child.end(_ns(began + until))
        for tier, source, size, first, last in end.transfers:
            told = {
                "weightyard.tier": tier, "weightyard.source": source, "weightyard.bytes": size,
            }  # fmt: skip
            child = tracer.start_span(
                f"fetch from {tier}", context=within, start_time=_ns(began + first), attributes=told
            )
            child.end(_ns(began + last))
        span.end(_ns(began + end.seconds))

    def close(self) -> None:
        """Send the remaining spans; returns when they are sent or the exporter has given up."""
        close(self.provider, os.environ)


def open_traces(environ: Mapping[str, str], clock: Callable[[], float]) -> Traces | None:
    """Traces to the collector that the environment names; None when it names none."""
    return Traces(open_provider(environ, SERVICE), clock) if is_on(environ) else None


def traces_here() -> Traces | None:
    """Traces in the trace of the calling program; None while it has none. The program sends them at its end."""
    here = provider()
    return None if here is None else Traces(here, time.time)


def _by_tier(end: PullEnded) -> dict[str, int]:
    sums: dict[str, int] = {}
    for tier, _, size in end.by_source:
        sums[tier] = sums.get(tier, 0) + size
    return sums


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
