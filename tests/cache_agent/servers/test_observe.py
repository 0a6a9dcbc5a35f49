"""The address for probes and scrapes: it answers those, and nothing that changes or tells more."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cache_agent.daemon.test_agent import agent
from tests.servers.process import wait_until

pytestmark = pytest.mark.servers


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("observe") / "root"
    with agent(root, "--observe", "127.0.0.1:0") as running:
        ready = wait_until(lambda: _ready_line(running.log), what="ready event")
        yield ready["servers"]["observe"]


def _ready_line(log: Path) -> dict[str, dict[str, str]] | None:
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    return next((line for line in lines if line.get("event") == "ready"), None)


def _ask(address: str, method: str, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(address)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_probes_and_metrics_are_answered(address: str) -> None:
    assert _ask(address, "GET", "/livez") == (200, b'{"status": "alive"}')
    status, body = _ask(address, "GET", "/readyz")
    assert status == 200
    assert json.loads(body)["ready"] is True
    status, body = _ask(address, "GET", "/metrics")
    assert status == 200
    assert b"weightyard_models 0.0" in body


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/models"), ("POST", "/v1/pull"), ("POST", "/v1/gc"), ("DELETE", "/v1/model"), ("GET", "/v1/leases")],
)  # fmt: skip
def test_nothing_of_the_control_api_is_reachable(address: str, method: str, path: str) -> None:
    status, _ = _ask(address, method, path)
    assert status == 404
