"""Pulls as spans, at a collector that speaks OTLP over HTTP; and nothing of it when none is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cache_agent.observability.events import PublishEnded, PullEnded
from cache_agent.observability.traces import open_traces
from modelimage.errors import NotFound
from tests.cache_agent.images import simple_image
from tests.cache_agent.nodes import NodeFactory, pull
from tests.servers.otlp import Collector


def test_a_pull_is_a_span_with_a_child_for_each_phase(
    open_node: NodeFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, _, contents = simple_image(weights=[5000])
    with Collector() as collector:
        environ = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_EXPORTER_OTLP_TIMEOUT": "3600",
        }
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        traces = open_traces(environ, lambda: 1000.0)
        assert traces is not None
        node = open_node({"reg.test/m": image}, events=traces)
        pull(node)
        with pytest.raises(NotFound):
            pull(node, "reg.test/nothing:v1")
        traces.close()
        spans = {span.name: span for span in reversed(collector.spans)}
        whole = [span for span in collector.spans if span.name == "pull"]
    assert set(spans) == {"pull", "resolving", "fetching", "publishing", "fetch from registry"}
    done, failed = sorted(whole, key=lambda span: span.status.code)
    attributes = {each.key: each.value for each in done.attributes}
    assert attributes["weightyard.outcome"].string_value == "done"
    size = sum({data: len(data) for data in contents.values()}.values())
    assert attributes["weightyard.fetched_bytes.registry"].int_value == size
    assert done.end_time_unix_nano == 1_000_000_000_000
    assert spans["publishing"].parent_span_id == done.span_id
    assert spans["publishing"].end_time_unix_nano == done.end_time_unix_nano
    assert "no image" in failed.status.message


def test_a_pods_volume_is_a_span_of_its_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    parent = f"00-{trace}-00f067aa0ba902b7-01"
    with Collector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3600")
        traces = open_traces({"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}, lambda: 1000.0)
        assert traces is not None
        traces.emit(PullEnded("m", "done", 3.0, 0, (), phases=[("resolving", 0.0)], trace=parent))
        traces.emit(PublishEnded("StillPulling", pod="team/chat-1", trace=parent))
        traces.emit(PublishEnded("done", 4.0, [("peer", 9)], "team/chat-1", parent))
        traces.emit(PublishEnded("done", 4.0, [("peer", 9)], "team/other"))
        traces.close()
    assert [span.name for span in collector.spans] == ["resolving", "pull", "publish volume"]
    assert {span.trace_id.hex() for span in collector.spans} == {trace}
    volume = collector.spans[2]
    assert volume.start_time_unix_nano == 996 * 10**9
    assert {each.key for each in volume.attributes} == {"k8s.pod.name", "weightyard.bytes.peer"}


def test_without_a_collector_nothing_of_it_is_imported() -> None:
    assert open_traces({}, lambda: 0.0) is None
    program = "import sys, cache_agent.daemon.agent; print([m for m in sys.modules if 'opentelemetry' in m])"
    root = Path(__file__).parents[3]
    said = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, check=True
    )
    assert said.stdout == b"[]\n"
