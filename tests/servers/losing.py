"""A network between a client and a server that loses connections midway, or has them stand still."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Self
from urllib.parse import urlsplit


class LosingConnections:
    """Passes connections on to the server at `url`, and cuts each of the first `times` that answer with more than
    `after` bytes, right there. `lost` counts them."""

    def __init__(self, url: str, *, after: int, times: int) -> None:
        upstream = urlsplit(url)
        self._upstream = (upstream.hostname or "127.0.0.1", upstream.port or 80)
        self._after, self._left, self.lost = after, times, 0
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        self._begin(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        with self._lock:
            for connection in self._open:
                _hang_up(connection)
        for thread in self._threads:
            thread.join()

    def _begin(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._server.accept()
                self._begin(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._upstream) as server:
            with self._lock:
                self._open |= {client, server}
            back = threading.Thread(target=self._answers, args=(server, client))
            back.start()
            _pass_on(client, server, None)
            _hang_up(server)
            back.join()
            with self._lock:
                self._open -= {client, server}

    def _answers(self, server: socket.socket, client: socket.socket) -> None:
        with self._lock:
            limit = self._after if self._left > 0 else None
        if _pass_on(server, client, limit):
            with self._lock:
                self._left, self.lost = self._left - 1, self.lost + 1
            self._fail(client)
        _hang_up(client)

    def _fail(self, client: socket.socket) -> None:
        """What happens to a connection that fails, before it is closed."""


class StallingConnections(LosingConnections):
    """Has connections stand still, open, until the network is taken down."""

    def __enter__(self) -> Self:
        self._over = threading.Event()
        return super().__enter__()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        super().__exit__()

    def _fail(self, client: socket.socket) -> None:
        self._over.wait()


def _pass_on(source: socket.socket, target: socket.socket, limit: int | None) -> bool:
    """Copy until one side ends, or `limit` bytes went by: whether it did."""
    passed = 0
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
            passed += len(data)
            if limit is not None and passed > limit:
                return True
    return False


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
