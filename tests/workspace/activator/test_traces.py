"""The trace of a request that wakes a server: from the client or the activator, through the queue, to the server."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import aiohttp
import pytest
from multidict import CIMultiDict

from modelimage import spans, trace_headers
from tests.servers.otlp import Collector, attributes
from tests.servers.process import until
from tests.workspace.activator.engine import Engine
from tests.workspace.activator.test_proxy import place
from workspace.controller.loops.scaling_loop import Targets, read_load

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"
STATE = "vendor=value"


async def echoed(headers: Mapping[str, str] | CIMultiDict[str]) -> dict[str, str]:
    """The headers that a server gets of a request with these."""
    async with place() as (made, session):
        await made.start_engine(Engine())
        async with session.get("/echo", headers=headers) as answer:
            found: dict[str, str] = (await answer.json())["headers"]
    return found


def test_a_request_that_wakes_a_server_is_one_trace() -> None:
    async def scenario() -> dict[str, Any]:
        async with place() as (made, session):
            headers = {"traceparent": PARENT, "tracestate": STATE}
            asking = asyncio.create_task(ask(session, headers))
            await until(lambda: made.activator.gate.waiting == 1, what="waiting request")
            load, _ = await read_load(session, Targets(0, (), str(session._base_url).rstrip("/")))
            assert load.held == 1
            await made.start_engine(Engine())
            return {"waking": load.trace, "server": await asking}

    async def ask(session: aiohttp.ClientSession, headers: Mapping[str, str]) -> dict[str, str]:
        async with session.get("/echo?key=secret", headers=headers) as answer:
            found: dict[str, str] = (await answer.json())["headers"]
            return found

    with Collector() as collector:
        with collector.named() as environ, spans.exporting(environ, service="activator"):
            found = asyncio.run(scenario())
        by_name = collector.by_name()
    assert set(by_name) == {"request", "wait for a server", "forward"}
    request, waiting, forward = (by_name[name] for name in ("request", "wait for a server", "forward"))  # fmt: skip
    assert {each.trace_id.hex() for each in collector.spans} == {TRACE}
    assert request.parent_span_id.hex() == PARENT.split("-")[2]
    assert waiting.parent_span_id == forward.parent_span_id == request.span_id
    assert found["server"]["traceparent"] == f"00-{TRACE}-{forward.span_id.hex()}-01"
    assert found["server"]["tracestate"] == STATE
    # The scaler's work becomes a child of the waiting.
    assert found["waking"] == f"00-{TRACE}-{waiting.span_id.hex()}-01"
    assert attributes(request) == {"method": "GET", "path": "/echo", "status": 418}


def test_a_client_without_a_trace_gets_one() -> None:
    with Collector() as collector:
        with collector.named() as environ, spans.exporting(environ, service="activator"):
            headers = [asyncio.run(echoed({})) for _ in range(2)]
        traces = {span.trace_id.hex() for span in collector.spans}
    assert {trace_headers.trace_id(each["traceparent"]) for each in headers} == traces
    assert len(traces) == 2, "each request has its own"


HOSTILE = {
    "nonsense": {"traceparent": "nonsense"},
    "huge": {"traceparent": PARENT + "-" + "0" * 5000},
    "no trace": {"traceparent": f"00-{'0' * 32}-00f067aa0ba902b7-01"},
    "forbidden version": {"traceparent": "ff" + PARENT[2:]},
    "capitals": {"traceparent": PARENT.upper()},
    "a state without parent": {"tracestate": STATE},
}


@pytest.mark.parametrize("headers", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("traced", [False, True])
def test_headers_that_are_no_trace_end_at_the_activator(
    headers: dict[str, str], traced: bool
) -> None:
    with Collector() as collector:
        environ = collector.environment if traced else {}
        with collector.named(), spans.exporting(environ, service="activator"):
            found = asyncio.run(echoed(headers))
    assert "tracestate" not in found
    assert trace_headers.is_parent(found.get("traceparent", "")) == traced
    assert TRACE not in found.get("traceparent", "")


@pytest.mark.parametrize("traced", [False, True])
def test_two_parents_are_none_and_a_long_state_is_left_out(traced: bool) -> None:
    two = CIMultiDict([("traceparent", PARENT), ("traceparent", PARENT)])
    long = {"traceparent": PARENT, "tracestate": f"vendor={'x' * 600}"}
    with Collector() as collector:
        environ = collector.environment if traced else {}
        with collector.named(), spans.exporting(environ, service="activator"):
            first, second = asyncio.run(echoed(two)), asyncio.run(echoed(long))
    assert TRACE not in first.get("traceparent", "")
    assert trace_headers.trace_id(second["traceparent"]) == TRACE
    assert "tracestate" not in second


def test_without_a_collector_a_clients_trace_passes_unchanged() -> None:
    found = asyncio.run(echoed({"traceparent": PARENT, "tracestate": STATE}))
    assert (found["traceparent"], found["tracestate"]) == (PARENT, STATE)
