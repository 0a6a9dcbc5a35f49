"""The health check of containers, as they run it."""

from __future__ import annotations

import http.server
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.servers.process import wait_until
from weightyard import probe
from weightyard.probe import answers


@contextmanager
def server(status: int) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_port}/livez"
        finally:
            running.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine is slow to answer; what is silent isn't the subject here."""
    monkeypatch.setattr(probe, "SECONDS", 3600.0)


def exit_code(url: str) -> int:
    return subprocess.run([sys.executable, "-m", "weightyard.probe", url], check=False).returncode


@pytest.mark.parametrize(("status", "expected"), [(200, True), (503, False), (404, False)])
def test_only_200_is_healthy(status: int, expected: bool) -> None:
    with server(status) as url:
        assert answers(url) is expected


def test_nobody_there_is_unhealthy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert not answers(f"http://127.0.0.1:{port}/livez")


def test_the_exit_code_says_it() -> None:
    with server(200) as url:
        wait_until(lambda: exit_code(url) == 0, what="answer in time")
    assert exit_code(url) == 1
