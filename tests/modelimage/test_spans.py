"""Spans and collectors that fail: they cost spans, and neither work nor its end nor words on a terminal."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import pytest

from modelimage import spans, trace_headers
from tests.servers.httpserver import Handler
from tests.servers.otlp import Answer, Collector, answering, hanging

MANY = 5000  # more than the queue of spans that wait takes
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def garbage(handler: Handler) -> None:
    handler.wfile.write(b"\x00\xff garbage\r\n\r\n")
    handler.close_connection = True


FAULTS = {
    "too many requests": answering(429, b"later", **{"Retry-After": "86400"}),
    "too large": answering(413, b"x" * 100_000),
    "unavailable": answering(503),
    "garbage": garbage,
    "garbage with 200": answering(200, b"\xff" * 100_000),
    "elsewhere": answering(307, Location="http://127.0.0.1:1/"),
}


@pytest.fixture
def until() -> Iterator[threading.Event]:
    """What lets a collector that hangs answer."""
    made = threading.Event()
    yield made
    made.set()


def flood(environ: dict[str, str]) -> int:
    """The work of a program that has more spans than any collector takes."""
    with spans.tracing(environ, service="test", name="whole"):
        for number in range(MANY):
            with spans.span("part", number=number):
                pass
    return number


@pytest.mark.parametrize("answer", FAULTS.values(), ids=FAULTS.keys())
def test_a_collector_that_fails_costs_spans_alone(
    answer: Answer, capfd: pytest.CaptureFixture[str]
) -> None:
    with Collector(answer) as collector:
        named = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_EXPORTER_OTLP_TIMEOUT": "0.2"}
        with collector.named(**named) as environ:
            assert flood(environ) == MANY - 1
    assert collector.requests
    assert collector.spans == []
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("opentelemetry").level != logging.CRITICAL


def test_a_collector_that_hangs_keeps_no_process(until: threading.Event) -> None:
    with Collector(hanging(until)) as collector:
        with collector.named(OTEL_EXPORTER_OTLP_TIMEOUT="0.1") as environ:
            assert flood(environ) == MANY - 1
        assert not until.is_set(), "it ended without an answer"
        until.set()


def test_a_collector_that_is_away_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_TIMEOUT": "0.1",
    }  # fmt: skip
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert flood(environ) == MANY - 1


@pytest.mark.parametrize(
    "header",
    [
        "", "nonsense", f"00-{TRACE}-00f067aa0ba902b7-01" + "x" * 9999, f"ff-{TRACE}-00f067aa0ba902b7-01",
        f"00-{'0' * 32}-00f067aa0ba902b7-01", f"00-{TRACE}-{'0' * 16}-01", f"00-{TRACE}-00f067aa0ba902b7-01\n",
        f"00-{TRACE.upper()}-00f067aa0ba902b7-01", f"00-{TRACE}-00f067aa0ba902b7-0\u0661",
    ],
)  # fmt: skip
def test_what_is_no_parent_begins_a_trace(header: str) -> None:
    assert not trace_headers.is_parent(header)
    assert trace_headers.trace_id(header) == ""
    with Collector() as collector:
        with (
            collector.named() as environ,
            spans.exporting(environ, service="test"),
            spans.span("work", trace_headers.SpanOrigin(header, link=header)),
        ):
            pass
        (span,) = collector.spans
    assert span.trace_id.hex() != TRACE
    assert not span.links


def test_a_parent_is_continued_with_its_state() -> None:
    parent = f"00-{TRACE}-00f067aa0ba902b7-01"
    assert trace_headers.passed_on([parent], ["a=1", "b=2"]) == trace_headers.SpanOrigin(
        parent, "a=1,b=2"
    )
    assert trace_headers.passed_on([parent, parent], []) == trace_headers.SpanOrigin()
    assert trace_headers.passed_on([parent], ["a=" + "x" * 600]) == trace_headers.SpanOrigin(parent)


def test_an_unsampled_parent_costs_no_export() -> None:
    """The client said that its trace isn't kept: OpenTelemetry's default sampler heeds it."""
    with Collector() as collector:
        with (
            collector.named() as environ,
            spans.exporting(environ, service="test"),
            spans.span("work", trace_headers.SpanOrigin(f"00-{TRACE}-00f067aa0ba902b7-00")),
        ):
            assert trace_headers.trace_id(spans.traceparent()) == TRACE
        assert collector.spans == []
