"""Spans of one trace over several processes: OpenTelemetry behind three functions, without cost while it is off.

`OTEL_EXPORTER_OTLP_ENDPOINT` (or `..._TRACES_ENDPOINT`) turns it on; OpenTelemetry's own variables set headers,
sampling and resource attributes, and `OTEL_SDK_DISABLED` turns it off. Its packages, the extra `trace`, are imported
only when it is on. A process continues the trace in its TRACEPARENT variable (W3C Trace Context). Attributes are names,
sizes and digests: never a header, a token or an address with a password.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, replace
from typing import Any, Final, ParamSpec, TypeVar

from modelimage.errors import InvalidInput

P = ParamSpec("P")
R = TypeVar("R")

TRACEPARENT: Final = "traceparent"
VARIABLE: Final = "TRACEPARENT"
# Characters; version 00 has 55.
_LONGEST: Final = 128
_PATIENCE_SECONDS: Final = 2.0
_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


@dataclass(frozen=True, slots=True)
class _Active:
    """A provider of OpenTelemetry, and the context whose span new ones are children of."""

    provider: Any
    context: Any


_ACTIVE: ContextVar[_Active | None] = ContextVar("weightyard_trace", default=None)


def is_on(environ: Mapping[str, str]) -> bool:
    """Whether the environment names a collector."""
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    return any(environ.get(name) for name in _ENDPOINTS)


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
    try:
        with span(name):
            yield
    finally:
        _ACTIVE.reset(token)
        provider.shutdown()


@contextmanager
def span(name: str, **attributes: str | int) -> Iterator[None]:
    """A span of the current trace, if there is one. An error ends it with the error's class, without its words."""
    active = _ACTIVE.get()
    if active is None:
        yield
        return
    from opentelemetry import trace  # noqa: PLC0415

    opened = active.provider.get_tracer("weightyard").start_span(
        name,
        context=active.context,
        attributes={f"weightyard.{key}": value for key, value in attributes.items()},
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


def provider() -> Any:
    """The provider of the current trace; None while tracing is off."""
    active = _ACTIVE.get()
    return None if active is None else active.provider


def traceparent() -> str:
    """The current span as a `traceparent` header; empty while tracing is off."""
    active = _ACTIVE.get()
    if active is None:
        return ""
    from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415
        TraceContextTextMapPropagator,
    )

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier, context=active.context)
    return carrier.get(TRACEPARENT, "")


def context_of(header: str) -> Any:
    """OpenTelemetry's context of a `traceparent` header; an empty one for a header that is none."""
    from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415
        TraceContextTextMapPropagator,
    )

    return TraceContextTextMapPropagator().extract({TRACEPARENT: header[:_LONGEST]})


def bound(call: Callable[P, R]) -> Callable[P, R]:
    """The call with the trace of now, for a thread of its own. May be called once."""
    context = copy_context()

    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        return context.run(call, *args, **kwargs)

    return run
