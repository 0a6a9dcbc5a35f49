"""urllib3's connections with a time limit for the whole answer, headers included.

Socket timeouts limit the wait for the next byte only: a server that sends one byte every nine seconds holds its caller
for days. Here each read gets what is left of the exchange's time.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import urllib3.connection
import urllib3.connectionpool


class TimeLimit:
    """When an exchange's reads must be done, as a time of `clock`; None for no limit. May be changed meanwhile."""

    def __init__(self, at: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.at = at
        self._clock = clock

    def apply(self, sock: socket.socket) -> float | None:
        """Shorten the socket's timeout to what is left; returns the timeout before. Raises TimeoutError."""
        before = sock.gettimeout()
        if self.at is None:
            return before
        left = self.at - self._clock()
        if left <= 0:
            raise TimeoutError("the answer took too long")
        if before is None or left < before:
            sock.settimeout(left)
        return before


# The limit of the exchange that this thread performs: urllib3 has no other way to hand it to a new connection.
_exchange = threading.local()


@contextmanager
def time_limited(limit: TimeLimit) -> Iterator[None]:
    """Exchanges that this thread performs meanwhile, and the reading of their answers, end with `limit`."""
    _exchange.limit = limit
    try:
        yield
    finally:
        _exchange.limit = None


class _LimitedSocket(socket.socket):
    limit: TimeLimit | None = None

    def recv_into(self, *args: Any) -> int:
        if self.limit is None or self.limit.at is None:
            return super().recv_into(*args)
        before = self.limit.apply(self)
        try:
            return super().recv_into(*args)
        finally:
            self.settimeout(before)


class LimitedTlsSocket(_LimitedSocket, ssl.SSLSocket):
    """For `SSLContext.sslsocket_class`."""


class _Limited(urllib3.connection.HTTPConnection):
    """Applies this thread's limit to new and reused connections."""

    def _new_conn(self) -> socket.socket:
        plain = super()._new_conn()
        timeout = plain.gettimeout()
        made = _LimitedSocket(plain.family, plain.type, plain.proto, fileno=plain.detach())
        made.settimeout(timeout)
        # A proxy's answer to CONNECT is read before the request is sent.
        made.limit = getattr(_exchange, "limit", None)
        return made

    def getresponse(self) -> Any:
        if isinstance(self.sock, _LimitedSocket):
            self.sock.limit = getattr(_exchange, "limit", None)
        return super().getresponse()


class _LimitedTls(_Limited, urllib3.connection.HTTPSConnection):
    pass


class _Pool(urllib3.connectionpool.HTTPConnectionPool):
    ConnectionCls = _Limited


class _TlsPool(urllib3.connectionpool.HTTPSConnectionPool):
    ConnectionCls = _LimitedTls


def use_limited_connections(manager: urllib3.PoolManager) -> None:
    """Makes a manager create connections of this module."""
    manager.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}
