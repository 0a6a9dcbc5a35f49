"""The mounter outlives whatever keeps it from accepting a connection."""

from __future__ import annotations

import errno
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from cache_agent.mounter.server import Mounter


class FailingSocket:
    """Accepts `peer` after the errors."""

    def __init__(self, errors: list[int], peer: socket.socket) -> None:
        self.errors, self.peer = errors, peer

    def accept(self) -> tuple[socket.socket, str]:
        if self.errors:
            code = self.errors.pop()
            raise OSError(code, os.strerror(code))
        return self.peer, ""


def test_a_connection_is_accepted_after_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cache_agent.mounter.server._PAUSE_SECONDS", 0.0)
    client, peer = socket.socketpair()
    codes = [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ECONNABORTED] * 20
    server: Any = FailingSocket(codes, peer)
    unused: Any = None
    mounter = Mounter(unused, os.getuid() + 1)
    with client, ThreadPoolExecutor(1) as pool:
        for _ in range(len(codes) + 1):
            mounter._accept(server, pool)
        client.sendall(b"{}\n")
        client.shutdown(socket.SHUT_WR)
        assert b"AccessDenied" in client.recv(4096)


def test_without_a_thread_the_peer_is_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cache_agent.mounter.server._PAUSE_SECONDS", 0.0)
    client, peer = socket.socketpair()
    server: Any = FailingSocket([], peer)
    unused: Any = None
    pool = ThreadPoolExecutor(1)
    pool.shutdown()  # submitting raises RuntimeError, as it does where no thread can be made
    Mounter(unused, 0)._accept(server, pool)
    with client:
        assert client.recv(1) == b""
