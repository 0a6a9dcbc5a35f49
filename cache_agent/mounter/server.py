"""The mounter's socket: one order a connection, from one user only, in threads that never wait long for a peer."""

from __future__ import annotations

import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Final

from cache_agent.mounter.binder import Binder
from cache_agent.mounter.orders import MAX_LINE, Operation, Order, Report, Target
from modelimage.errors import AccessDenied, InvalidInput, WeightyardError

_PEER_SECONDS: Final = 5.0
_THREADS: Final = 32
_LOCKS: Final = 64
_CREDENTIALS: Final = struct.Struct("3i")


@dataclass
class Mounter:
    """Carries out the orders of one user, those for one volume one at a time."""

    binder: Binder
    user: int
    _locks: list[threading.Lock] = field(
        default_factory=lambda: [threading.Lock() for _ in range(_LOCKS)]
    )

    def serve(self, server: socket.socket, ready: Callable[[], None]) -> None:
        """Answer until SIGTERM or SIGINT, and finish what was begun."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: sys.exit(0))
        with server, ThreadPoolExecutor(_THREADS, thread_name_prefix="mounter") as pool:
            ready()
            while True:
                pool.submit(self.answer, server.accept()[0])

    def answer(self, peer: socket.socket) -> None:
        """Read one order, carry it out, and report."""
        with peer:
            peer.settimeout(_PEER_SECONDS)
            try:
                peer.sendall(self._report(peer).to_bytes())
            except OSError:
                return  # the peer went away or was too slow; what was done is done, and can be asked again

    def _report(self, peer: socket.socket) -> Report:
        try:
            uid = _uid_of(peer)
            if uid != self.user:
                raise AccessDenied(f"user {uid} may not give orders to the mounter")
            return self.carry_out(Order.parse(read_line(peer)))
        except WeightyardError as error:
            return Report(error=type(error).__name__, message=error.message)

    def carry_out(self, order: Order) -> Report:
        """Do what is asked. Raises what `Binder` raises."""
        target = Target.parse(order.target, PurePosixPath(self.binder.kubelet))
        with self._locks[hash(target) % _LOCKS]:
            if order.operation is Operation.BIND and order.key is not None:
                return Report(order.key, self.binder.bind(order.key, target))
            if order.operation is Operation.UNBIND:
                return Report(None, self.binder.unbind(target))
            return Report(self.binder.look(target))


def _uid_of(peer: socket.socket) -> int:
    """The user at the other end, as the kernel knows it."""
    data = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(data)[1])


def read_line(peer: socket.socket) -> bytes:
    """One line. Raises InvalidInput when there is none within the limit."""
    data = bytearray()
    while not data.endswith(b"\n"):
        piece = peer.recv(MAX_LINE)
        data += piece
        if not piece or len(data) > MAX_LINE:
            raise InvalidInput("malformed order: no line")
    return bytes(data)
