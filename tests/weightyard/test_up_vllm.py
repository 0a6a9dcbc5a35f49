"""The whole way with a real model and a real vLLM: build, up, ask, down. One start serves all tests here."""

from __future__ import annotations

import json
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3

from tests.weightyard.local import Terminal, alive, workspace
from weightyard.demo.run import ask

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def terminal() -> Iterator[Terminal]:
    with tempfile.TemporaryDirectory(prefix="wy-") as directory:
        terminal = Terminal(Path(directory), fake=None)
        yield terminal
        terminal.close()


@pytest.fixture(scope="module")
def ready(terminal: Terminal, smollm2: Path) -> dict[str, Any]:
    """What `up -d --json` says once SmolLM2 is served."""
    image = f"oci:{terminal.directory}/image:v1"
    terminal.ok("build", str(smollm2), "--to", image)
    file = workspace(terminal.directory, "smollm2-demo", image)
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
