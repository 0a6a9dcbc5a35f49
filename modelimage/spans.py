"""Spans of one trace over several processes: OpenTelemetry behind three functions, without cost while it is off.

`OTEL_EXPORTER_OTLP_ENDPOINT` (or `..._TRACES_ENDPOINT`) turns it on; OpenTelemetry's own variables set headers,
sampling and resource attributes, and `OTEL_SDK_DISABLED` turns it off. Its packages, the extra `trace`, are imported
only when it is on. A process continues the trace in its TRACEPARENT variable (W3C Trace Context). Attributes are names,
sizes and digests: never a header, a token or an address with a password.

Spans wait for their export in a queue of bounded length and a thread of its own: a collector that is slow or away costs
spans, never work.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, replace
from typing import Any, Final, ParamSpec, TypeVar

from modelimage.errors import InvalidInput
from modelimage.trace_headers import (
    TRACEPARENT,
    TRACESTATE,
    VARIABLE,
    SpanOrigin,
    is_on,
    is_parent,
)

P = ParamSpec("P")
R = TypeVar("R")

_PATIENCE_SECONDS: Final = 2.0
_SECONDS: Final = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?")
_EXPORTS_AT_END: Final = 2  # that may take their whole time


@dataclass(frozen=True, slots=True)
class _Active:
    """A provider of OpenTelemetry, and the context whose span new ones are children of."""

    provider: Any
    context: Any


_ACTIVE: ContextVar[_Active | None] = ContextVar("weightyard_trace", default=None)


def open_provider(environ: Mapping[str, str], service: str) -> Any:
    """A provider that sends spans to the environment's collector. Its `shutdown` sends what is left.

    Raises ImportError without the extra `trace`, InvalidInput for variables that OpenTelemetry refuses.
    """
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
        OTLPSpanExporter,
    )
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    name = environ.get("OTEL_SERVICE_NAME", service)
    # Short, because a collector that is down must not delay the end of a process.
    patience = None if environ.get("OTEL_EXPORTER_OTLP_TIMEOUT") else _PATIENCE_SECONDS
    try:
        provider = TracerProvider(resource=Resource.create({"service.name": name}))
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(timeout=patience)))
    except ValueError as error:
        raise InvalidInput(
            f"a variable of OpenTelemetry can't be used: {error}",
            hint="Correct it, or turn tracing off: OTEL_SDK_DISABLED=true.",
        ) from error
    return provider


def close(provider: Any, environ: Mapping[str, str]) -> None:
    """Send what a provider still has, and give it up where the collector takes too long: there may be many batches."""
    given = environ.get("OTEL_EXPORTER_OTLP_TIMEOUT", "")
    # In seconds, as OpenTelemetry for Python reads it; its specification has milliseconds.
    patience = float(given) if _SECONDS.fullmatch(given) else _PATIENCE_SECONDS
    # A daemon: a collector that hangs must not keep the process.
    closing = threading.Thread(target=provider.shutdown, name="spans", daemon=True)
    closing.start()
    closing.join(_EXPORTS_AT_END * patience)


@contextmanager
def tracing(environ: Mapping[str, str], *, service: str, name: str) -> Iterator[None]:
    """A span around a whole program's work, where a collector is named; within it, `span` makes its children.

    Does nothing without a collector, without the extra `trace`, or with variables that OpenTelemetry refuses: they may
    be meant for others, and must not break a command.
    """
    if not is_on(environ):
        yield
        return
    try:
        provider = open_provider(environ, service)
    except (ImportError, InvalidInput):
        yield
        return
    token = _ACTIVE.set(_Active(provider, context_of(environ.get(VARIABLE, ""))))
    # A command says what it did, not that a collector is away.
    library = logging.getLogger("opentelemetry")
    before = library.level
    library.setLevel(logging.CRITICAL)
    try:
        with span(name):
            yield
    finally:
        _ACTIVE.reset(token)
        close(provider, environ)
        library.setLevel(before)


@contextmanager
def exporting(environ: Mapping[str, str], *, service: str) -> Iterator[None]:
    """Within it, `span` begins a trace of its own each time: for programs that serve. Sends what is left at the end.

    Does nothing without a collector. Raises what `open_provider` raises: an operator means what a server is told.
    """
    if not is_on(environ):
        yield
        return
    provider = open_provider(environ, service)
    token = _ACTIVE.set(_Active(provider, context_of("")))
    try:
        yield
    finally:
        _ACTIVE.reset(token)
        close(provider, environ)


_HERE: Final = SpanOrigin()


@contextmanager
def span(name: str, origin: SpanOrigin = _HERE, **attributes: str | int) -> Iterator[None]:
    """A span of the current trace, or of its origin's; nothing while tracing is off.

    An error ends it with the error's class, without its words.
    """
    active = _ACTIVE.get()
    if active is None:
        yield
        return
    from opentelemetry import trace  # noqa: PLC0415

    context = context_of(origin.parent, origin.state) if is_parent(origin.parent) else None
    linked = trace.get_current_span(context_of(origin.link)).get_span_context()
    opened = active.provider.get_tracer("weightyard").start_span(
        name,
        context=active.context if context is None else context,
        attributes={f"weightyard.{key}": value for key, value in attributes.items()},
        links=[trace.Link(linked)] if linked.is_valid else [],
        start_time=origin.began or None,
    )
    token = _ACTIVE.set(replace(active, context=trace.set_span_in_context(opened)))
    try:
        yield
    except BaseException as error:
        opened.set_status(trace.Status(trace.StatusCode.ERROR, type(error).__name__))
        raise
    finally:
        _ACTIVE.reset(token)
        opened.end()


def note(**attributes: str | int) -> None:
    """Add attributes to the current span, if there is one."""
    active = _ACTIVE.get()
    if active is None:
        return
    from opentelemetry import trace  # noqa: PLC0415

    current = trace.get_current_span(active.context)
    current.set_attributes({f"weightyard.{key}": value for key, value in attributes.items()})


def provider() -> Any:
    """The provider of the current trace; None while tracing is off."""
    active = _ACTIVE.get()
    return None if active is None else active.provider


def traceparent() -> str:
    """The current span as a `traceparent` header; empty while tracing is off."""
    return headers().get(TRACEPARENT, "")


def headers() -> dict[str, str]:
    """The current span as headers of a request; none while tracing is off."""
    active = _ACTIVE.get()
    if active is None:
        return {}
    from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415
        TraceContextTextMapPropagator,
    )

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier, context=active.context)
    return carrier


def context_of(header: str, state: str = "") -> Any:
    """OpenTelemetry's context of a `traceparent` header and its `tracestate`; an empty one if it can't be one."""
    from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415
        TraceContextTextMapPropagator,
    )

    carrier = {TRACEPARENT: header} if is_parent(header) else {}
    if state:
        carrier[TRACESTATE] = state
    return TraceContextTextMapPropagator().extract(carrier)


def bound(call: Callable[P, R]) -> Callable[P, R]:
    """The call with the trace of now, for a thread of its own. May be called once."""
    context = copy_context()

    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        return context.run(call, *args, **kwargs)

    return run
