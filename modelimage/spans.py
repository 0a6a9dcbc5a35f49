"""Spans of one trace over several processes: OpenTelemetry behind three functions, without cost while it is off.

`OTEL_EXPORTER_OTLP_ENDPOINT` (or `..._TRACES_ENDPOINT`) turns it on; OpenTelemetry's own variables set headers,
sampling and resource attributes, and `OTEL_SDK_DISABLED` turns it off. Its packages, the extra `trace`, are imported
only when it is on. A process continues the trace in its TRACEPARENT variable (W3C Trace Context). Attributes are names,
sizes and digests: never a header, a token or an address with a password.

Spans wait for their export in a queue of bounded length and a thread of its own: a collector that is slow or away costs
spans, never work.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, replace
from typing import Any, Final, ParamSpec, TypeVar

from modelimage.errors import InvalidInput

P = ParamSpec("P")
R = TypeVar("R")

TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"
VARIABLE: Final = "TRACEPARENT"
# Characters. Version 00 of a traceparent has 55; a tracestate is passed on up to what the standard asks for.
_LONGEST: Final = 128
_LONGEST_STATE: Final = 512
# Of the first version of W3C Trace Context, and of later ones as far as they are the same.
_PARENT: Final = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)
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
        provider.shutdown()


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a span comes from: the headers of its parent, and those of a trace that it is linked to.

    `began`: when, in nanoseconds since the epoch; 0 is now.
    """

    parent: str = ""
    state: str = ""
    link: str = ""
    began: int = 0


_HERE: Final = Origin()


@contextmanager
def span(name: str, origin: Origin = _HERE, **attributes: str | int) -> Iterator[None]:
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


def is_parent(header: str) -> bool:
    """Whether a header is a `traceparent` of which a trace can go on."""
    return len(header) <= _LONGEST and _PARENT.fullmatch(header) is not None


def trace_id(header: str) -> str:
    """The trace of a `traceparent` header, as collectors name it; empty for a header that is none."""
    return header.split("-")[1] if is_parent(header) else ""


def passed_on(parents: Sequence[str], states: Sequence[str]) -> Origin:
    """Where a request comes from that has these headers: from nowhere if there are several parents, or one is none.

    So says the standard. A `tracestate` that is longer than what must be taken is left out.
    """
    if len(parents) != 1 or not is_parent(parents[0]):
        return Origin()
    state = ",".join(states)
    return Origin(parents[0], state if len(state) <= _LONGEST_STATE else "")


def context_of(header: str, state: str = "") -> Any:
    """OpenTelemetry's context of a `traceparent` header and its `tracestate`; an empty one if it can't be one."""
    from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415
        TraceContextTextMapPropagator,
    )

    carrier = {TRACEPARENT: header[:_LONGEST]}
    if state:
        carrier[TRACESTATE] = state
    return TraceContextTextMapPropagator().extract(carrier)


def bound(call: Callable[P, R]) -> Callable[P, R]:
    """The call with the trace of now, for a thread of its own. May be called once."""
    context = copy_context()

    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        return context.run(call, *args, **kwargs)

    return run
