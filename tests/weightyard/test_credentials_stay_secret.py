"""Credentials go through every path of a build and a pull, and are in nothing that programs say or keep.

Not in output, errors with tracebacks, logs, spans, metrics, status, events, or files under the store's root.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.cache_agent.daemon.test_agent import RunningAgent, agent
from tests.servers.otlp import Collector
from tests.servers.registry import DockerRegistry, TokenAuthRegistry
from tests.synthetic import synthetic_checkpoint
from tests.weightyard.local import Terminal

pytestmark = pytest.mark.servers

PASSWORD, WRONG = "pw-wonderland-5e1d", "pw-looking-glass-77aa"
VARIABLES = {
    "HF_TOKEN": "hf_tokenthatnobodysees", "AWS_ACCESS_KEY_ID": "AKIANOBODYSEES",
    "AWS_SECRET_ACCESS_KEY": "aws-secret-nobody-sees",
    "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20otel-nobody-sees",
}  # fmt: skip
SECRETS = [
    PASSWORD, WRONG, "hf_tokenthatnobodysees", "AKIANOBODYSEES", "aws-secret-nobody-sees", "otel-nobody-sees",
    "eyJhbGciOi", "eyJ0eXAiOi",  # how tokens of registries begin
    *(base64.b64encode(f"alice:{each}".encode()).decode().rstrip("=") for each in (PASSWORD, WRONG)),
]  # fmt: skip


@dataclass
class Said:
    """Everything that was said, by who said it."""

    texts: dict[str, str] = field(default_factory=dict)

    def run(self, terminal: Terminal, *words: str, fails: bool = False) -> None:
        done = terminal.run(*words)
        assert bool(done.returncode) == fails, done.stderr
        self.texts[" ".join(words)] = done.stdout + done.stderr

    def check(self) -> None:
        assert all(self.texts.values()), [name for name, text in self.texts.items() if not text]
        leaks = [
            (name, secret)
            for name, text in self.texts.items()
            for secret in SECRETS
            if secret in text
        ]
        assert leaks == []


@pytest.fixture
def private() -> Iterator[DockerRegistry]:
    """A registry that wants a token, and gives one for a password."""
    with TokenAuthRegistry(users={"alice": PASSWORD}) as registry:
        yield registry


def log_in(directory: Path, host: str, password: str) -> None:
    """Write the credentials as `docker login` does."""
    auth = base64.b64encode(f"alice:{password}".encode()).decode()
    config = directory / "docker" / "config.json"
    config.parent.mkdir(exist_ok=True)
    config.write_text(json.dumps({"auths": {host: {"auth": auth}}}))


def page(running: RunningAgent, path: str) -> str:
    connection, answer = running.client._send("GET", path, None, timeout=60)
    try:
        return answer.read().decode()
    finally:
        connection.close()


def test_no_credential_is_told_or_kept(terminal: Terminal, private: DockerRegistry) -> None:
    said, image = Said(), f"{private.host}/team/model:v1"
    source = synthetic_checkpoint(terminal.directory / "source", total_bytes=400_000)
    with Collector() as collector:
        environment = {
            **VARIABLES, "DOCKER_CONFIG": str(terminal.directory / "docker"), "WEIGHTYARD_DEBUG": "1",
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_EXPORTER_OTLP_TIMEOUT": "3600",
        }  # fmt: skip
        terminal.extra = environment
        log_in(terminal.directory, private.host, PASSWORD)
        said.run(terminal, "build", str(source), "--to", image)
        with agent(terminal.root, environment=environment) as running:
            said.run(terminal, "pull", image)
            log_in(terminal.directory, private.host, WRONG)
            said.run(terminal, "pull", f"{private.host}/team/other:v1", fails=True)
            said.run(terminal, "inspect", image, fails=True)
            said.run(terminal, "--json", "explain", image)
            said.run(terminal, "--json", "ls")
            for path in ("/metrics", "/v1/status", "/v1/events", "/v1/models"):
                said.texts[path] = page(running, path)
        said.texts["the agent's log"] = running.log.read_text()
        said.texts["spans"] = "\n".join(map(str, collector.spans))
    files = [each for each in terminal.root.rglob("*") if each.is_file()]
    said.texts["files"] = "\n".join(each.read_bytes().decode(errors="replace") for each in files)
    assert "pull ended" in said.texts["the agent's log"]
    assert "fetch from registry" in said.texts["spans"]
    outcomes = set(re.findall(r'pulls_finished_total{outcome="(\w+)"}', said.texts["/metrics"]))
    assert "done" in outcomes
    assert len(outcomes) == 2
    said.check()
