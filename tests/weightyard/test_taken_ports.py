"""Each listener on a port that is taken: which port, who has it, what to do, and the exit code of `up`."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelimage.errors import Busy, InvalidInput
from modelimage.tcp_listener import check_free, holder_of, listen_tcp
from tests.weightyard.local import Terminal


@pytest.fixture
def taken() -> Iterator[int]:
    with listen_tcp("127.0.0.1", 0) as holder:
        yield int(holder.getsockname()[1])


# The peers server has the same `serve` as the others, and needs certificates and keys.
@pytest.mark.parametrize("option", ["--port", "--mirror", "--hub", "--observe"])
def test_the_agent(terminal: Terminal, taken: int, option: str) -> None:
    value = str(taken) if option == "--port" else f"127.0.0.1:{taken}"
    done = terminal.run("agent", option, value)
    check(done.returncode, done.stderr, taken, option)


def test_the_activator(terminal: Terminal, taken: int) -> None:
    listen = f"127.0.0.1:{taken}"
    done = terminal.run("activator", "--listen", listen, "--upstream", "http://127.0.0.1:1")
    check(done.returncode, done.stderr, taken, "--listen")


def test_up(terminal: Terminal, file: Path, taken: int) -> None:
    done = terminal.run("up", str(file), "--port", str(taken))
    check(done.returncode, done.stderr, taken, "--port")


def check(code: int, message: str, port: int, option: str) -> None:
    assert code == 12, message
    error, hint = message.splitlines()[-2:]
    assert f"port {port} of 127.0.0.1 is taken by `" in error
    assert f"(pid {os.getpid()})" in error
    assert option in hint
    assert "bug" not in message
    assert "ExceptionGroup" not in message


def test_a_port_is_free_again(taken: int) -> None:
    assert holder_of(taken)
    with pytest.raises(Busy, match=str(taken)):
        check_free("127.0.0.1", taken)
    with listen_tcp("127.0.0.1", 0) as other:
        port = int(other.getsockname()[1])
    assert holder_of(port) is None
    check_free("127.0.0.1", port)


def test_addresses_of_other_machines() -> None:
    with pytest.raises(InvalidInput, match=r"192\.0\.2\.1"):
        listen_tcp("192.0.2.1", 0)


def test_ipv6() -> None:
    with listen_tcp("::1", 0) as holder:
        assert holder.family == socket.AF_INET6
        with pytest.raises(Busy, match=rf"pid {os.getpid()}"):
            check_free("::1", int(holder.getsockname()[1]))
