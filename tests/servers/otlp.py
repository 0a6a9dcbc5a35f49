"""A collector of OTLP over HTTP that keeps the spans it is sent, and the ways in which one fails."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast
from unittest.mock import patch

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.servers.httpserver import Handler, LoopbackServer

Answer = Callable[[Handler], None]


class _CollectorHandler(Handler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        owner: Collector = cast("Any", self.server).owner
        owner.requests += 1
        if owner.answering is not None:
            owner.answering(self)
            return
        owner.keep(ExportTraceServiceRequest.FromString(body))
        self.answer(200)


class Collector(LoopbackServer):
    """Keeps the spans that it is sent, and the name of the service that each is from.

    `answering` is what it does instead, for a collector that fails.
    """

    HANDLER = _CollectorHandler

    def __init__(self, answering: Answer | None = None) -> None:
        self.answering = answering
        self.spans: list[Any] = []
        self.services: dict[bytes, str] = {}
        self.requests = 0

    def keep(self, request: ExportTraceServiceRequest) -> None:
        for resource in request.resource_spans:
            said = {each.key: each.value.string_value for each in resource.resource.attributes}
            for span in [span for scope in resource.scope_spans for span in scope.spans]:
                self.spans.append(span)
                self.services[span.span_id] = said.get("service.name", "")

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which a program finds it, without a limit in seconds for an export."""
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.url, "OTEL_EXPORTER_OTLP_TIMEOUT": "3600",
        }  # fmt: skip

    @contextmanager
    def named(self, **more: str) -> Iterator[dict[str, str]]:
        """Within it, this process has the variables: OpenTelemetry reads them itself."""
        with patch.dict("os.environ", self.environment | more):
            yield self.environment | more

    def by_name(self) -> dict[str, Any]:
        """The spans by their names; of several the last."""
        return {span.name: span for span in self.spans}


def attributes(span: Any) -> dict[str, str | int]:
    """A span's attributes, without the prefix of ours."""
    return {
        each.key.removeprefix("weightyard."): each.value.string_value or each.value.int_value
        for each in span.attributes
    }


def hanging(until: threading.Event) -> Answer:
    """Answers nothing before something happens."""
    return lambda _: cast("None", until.wait())


def answering(status: int, body: bytes = b"", **headers: str) -> Answer:
    """Answers with a status."""
    return lambda handler: handler.answer(status, body, headers)
