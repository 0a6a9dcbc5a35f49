"""One trace over processes: a build, a pull through an agent and a server, at a collector of OTLP over HTTP."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modelimage import spans
from modelimage.errors import InvalidInput
from modelimage.stage_workers import run_all
from tests.cache_agent.daemon.test_agent import agent
from tests.servers.otlp import Collector
from tests.servers.registry import DockerRegistry
from tests.synthetic import synthetic_checkpoint
from tests.weightyard.local import Terminal, workspace

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as found:
        yield found


@pytest.mark.servers
def test_a_build_and_a_pull_through_an_agent_are_one_trace(
    terminal: Terminal, collector: Collector, registry: DockerRegistry, unique_name: Callable[[str], str]
) -> None:  # fmt: skip
    image = f"{registry.host}/{unique_name('trace/model')}:v1"
    source = synthetic_checkpoint(terminal.directory / "source", total_bytes=1_000_000)
    environment = collector.environment
    terminal.extra = {**environment, "TRACEPARENT": PARENT}
    terminal.ok("build", str(source), "--to", image)
    with agent(terminal.root, environment=environment):
        terminal.ok("pull", image)
    # All of them are sent: both programs have ended.
    found = collector.by_name()
    assert set(found) >= {
        "weightyard build", "survey", "collect", "pack", "hash", "publish", "upload",
        "weightyard pull", "pull", "resolving", "fetching", "publishing", "fetch from registry",
    }  # fmt: skip
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
    for child, parent in (
        ("hash", "pack"), ("pack", "weightyard build"), ("upload", "publish"),
        ("pull", "weightyard pull"), ("fetch from registry", "pull"),
    ):  # fmt: skip
        assert found[child].parent_span_id == found[parent].span_id, child
    fetched = {each.key: each.value for each in found["fetch from registry"].attributes}
    assert fetched["weightyard.bytes"].int_value >= 1_000_000


def test_a_server_gets_the_trace_and_a_pull_without_an_agent_is_in_it(
    terminal: Terminal, collector: Collector, tiny_image: str
) -> None:
    terminal.extra = {**collector.environment, "TRACEPARENT": PARENT}
    process = terminal.start("up", str(workspace(terminal.directory, "tiny", tiny_image)), "--port", "0")  # fmt: skip
    terminal.wait_for("tiny", "ready")
    server = terminal.document("tiny")["server"]["pid"]
    variables = dict(
        each.split("=", 1)
        for each in Path(f"/proc/{server}/environ").read_text().split("\0")
        if "=" in each
    )
    terminal.ok("down", "tiny")
    process.communicate()
    found = collector.by_name()
    _, trace, parent, _ = variables["TRACEPARENT"].split("-")
    assert (trace, parent) == (TRACE, found["weightyard up"].span_id.hex())
    assert found["pull"].parent_span_id == found["weightyard up"].span_id


def test_threads_of_a_stage_continue_the_trace(collector: Collector) -> None:
    environ = {**os.environ, **collector.environment, "TRACEPARENT": PARENT}
    names: set[str] = set()

    def job(item: int, _: object) -> None:
        with spans.span(f"job {item}"):
            names.add(threading.current_thread().name)

    before = dict(os.environ)
    os.environ.update(environ)
    try:
        with spans.tracing(environ, service="test", name="whole"):
            run_all([1, 2], job, advance=lambda _: None, workers=2)
    finally:
        os.environ.clear()
        os.environ.update(before)
    found = collector.by_name()
    assert found["job 1"].parent_span_id == found["job 2"].parent_span_id == found["whole"].span_id
    assert "MainThread" not in names


@pytest.mark.parametrize(
    "environ",
    [{}, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"}],
)
def test_without_a_collector_nothing_is_traced(environ: dict[str, str]) -> None:
    with spans.tracing(environ, service="test", name="whole"), spans.span("part"):
        assert spans.traceparent() == ""
        assert spans.provider() is None


def test_variables_that_opentelemetry_refuses_break_no_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They may be meant for other programs; an agent, whose operator sets them, says which."""
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_BSP_MAX_QUEUE_SIZE": "-1"}
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with spans.tracing(environ, service="test", name="whole"):
        assert spans.provider() is None
    with pytest.raises(InvalidInput, match="max_queue_size"):
        spans.open_provider(environ, "test")


def test_a_command_without_a_collector_imports_nothing_of_it() -> None:
    program = (
        "import sys; from weightyard.cli import main; main(['pull', '--help']); "
        "print([m for m in sys.modules if 'opentelemetry' in m], file=sys.stderr)"
    )
    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert said.stderr.strip() == "[]"


@pytest.mark.parametrize("header", ["", "nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "x" * 9999])  # fmt: skip
def test_a_header_that_is_none_begins_a_trace(header: str) -> None:
    assert not spans.context_of(header)
