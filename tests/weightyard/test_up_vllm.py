"""The whole way with a real model and a real vLLM: build, up, ask, down. One start serves all tests here.

Everything is traced, with an agent: the start's spans are looked at in the end.
"""

from __future__ import annotations

import json
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3

from tests.cache_agent.daemon.test_agent import agent
from tests.servers.otlp import Collector
from tests.servers.process import wait_until
from tests.weightyard.local import Terminal, alive, workspace
from weightyard.demo.run import ask

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"
REQUEST = "llm_request"  # vLLM's name for the span of one

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as found:
        yield found


@pytest.fixture(scope="module")
def terminal(collector: Collector) -> Iterator[Terminal]:
    with tempfile.TemporaryDirectory(prefix="wy-") as directory:
        terminal = Terminal(Path(directory), fake=None)
        terminal.extra = {
            **collector.environment, "TRACEPARENT": PARENT,
            # vLLM's default is gRPC.
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
        }  # fmt: skip
        with agent(terminal.root, environment=collector.environment):
            yield terminal
            terminal.close()


@pytest.fixture(scope="module")
def ready(terminal: Terminal, collector: Collector, smollm2: Path) -> dict[str, Any]:
    """What `up -d --json` says once SmolLM2 is served."""
    image = f"oci:{terminal.directory}/image:v1"
    terminal.ok("build", str(smollm2), "--to", image)
    traced = {"tracing": {"endpoint": f"{collector.url}/v1/traces"}}
    file = workspace(terminal.directory, "smollm2-demo", image, runtime=traced)
    text = terminal.ok("up", "-d", str(file), "--port", "0", "--json")
    document: dict[str, Any] = json.loads(text)
    return document


def test_answers(ready: dict[str, Any]) -> None:
    assert "Paris" in ask(ready["url"], "The capital of France is").text


def test_metrics_count_what_was_asked(ready: dict[str, Any]) -> None:
    ask(ready["url"], "One, two, three,")
    with urllib3.PoolManager(retries=False) as http:
        page = http.request("GET", f"{ready['url']}/metrics").data.decode()
    assert "vllm:request_success_total{" in page


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    with urllib3.PoolManager(retries=False) as http:
        reply = http.request("POST", url, json=body)
    assert reply.status == 200, reply.data
    found: dict[str, Any] = json.loads(reply.data)
    return found


def test_chat_template_came_along(ready: dict[str, Any], smollm2: Path) -> None:
    """A conversation becomes the prompt that transformers makes of it with the checkpoint's own template.

    The template's default system message is in it, so no other template gives the same. The words of the answer are
    rounding's: a model of this size answers this question now right, now wrong.
    """
    from transformers import AutoTokenizer  # noqa: PLC0415 (installed with vLLM only)

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model, url = ready["model"], ready["url"]
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert "trained by Hugging Face" in expected
    tokens = post(f"{url}/tokenize", {"model": model, "messages": messages})["tokens"]
    assert tokens == tokenizer.encode(expected, add_special_tokens=False)
    assert post(f"{url}/detokenize", {"model": model, "tokens": tokens})["prompt"] == expected
    body = {"model": model, "messages": messages, "max_tokens": 12, "temperature": 0}
    reply = post(f"{url}/v1/chat/completions", body)
    assert reply["choices"][0]["message"]["content"]


def test_serves_the_cached_directory(
    ready: dict[str, Any], smollm2: Path, terminal: Terminal
) -> None:
    """The files vLLM maps are the checkpoint's, byte for byte, and lie in the store."""
    directory = Path(ready["directory"])
    assert directory.is_relative_to(terminal.root)
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (directory / name).read_bytes() == (smollm2 / name).read_bytes()


def test_served_under_the_names_and_limits_planned(ready: dict[str, Any]) -> None:
    with urllib3.PoolManager(retries=False) as http:
        (model,) = json.loads(http.request("GET", f"{ready['url']}/v1/models").data)["data"]
    assert model["id"] == "smollm2-demo"
    assert model["max_model_len"] == 8192


def test_ps_and_logs(ready: dict[str, Any], terminal: Terminal) -> None:
    assert [row["state"] for row in terminal.ps()] == ["ready"]
    assert "Application startup complete" in terminal.ok("logs", "smollm2-demo")


def test_build_pull_and_start_are_one_trace(ready: dict[str, Any], collector: Collector) -> None:
    """So is a request whose client has no trace: vLLM's parent is that of its start."""
    ask(ready["url"], "The capital of Spain is")
    # vLLM sends its spans every few seconds.
    wait_until(lambda: REQUEST in collector.by_name(), what="the span of a request")
    found = {span.name for span in collector.spans if span.trace_id.hex() == TRACE}
    assert {"weightyard build", "pack", "hash", "publish"} <= found
    assert {"pull", "resolving", "fetching", "publishing"} <= found
    assert {"Overall Loading", "Load model", "Load weights"} <= found
    services = {collector.services[span.span_id] for span in collector.spans}
    assert services == {"weightyard", "weightyard-agent", "smollm2-demo"}


@pytest.mark.usefixtures("ready")
def test_down_leaves_nothing(smollm2: Path) -> None:
    """In a second instance, since the first is shared: Ctrl-C while the engine's own processes start."""
    with tempfile.TemporaryDirectory(prefix="wy-") as directory:
        terminal = Terminal(Path(directory), fake=None)
        image = f"oci:{directory}/image:v1"
        terminal.ok("build", str(smollm2), "--to", image)
        process = terminal.start(
            "up", str(workspace(Path(directory), "second", image)), "--port", "0"
        )
        try:
            terminal.wait_for("second", "starting")
            process.send_signal(signal.SIGINT)
            process.communicate()
            assert process.returncode == 130
            server = terminal.document("second")["server"]
            assert server is None or not alive(server["pid"])
        finally:
            terminal.close()
