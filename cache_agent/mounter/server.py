"""The mounter's socket: one order a connection, from one user only, in threads that never wait for a slow peer."""

from __future__ import annotations

import os
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

from cache_agent.mounter.binder import Binder
from cache_agent.mounter.protocol import MAX_LINE, Operation, Order, Report, Target
from cache_agent.sockets import listen
from modelimage.errors import AccessDenied, InvalidInput, WeightyardError

_PEER_SECONDS: Final = 5.0
_THREADS: Final = 32
_CREDENTIALS: Final = struct.Struct("3i")


@dataclass
class Mounter:
    """Carries out orders of the users in `allowed` (uids), one at a time for each volume."""

    binder: Binder
    allowed: frozenset[int]
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, peer: socket.socket) -> None:
        """Read one order, carry it out, and report."""
        with peer:
            peer.settimeout(_PEER_SECONDS)
            try:
                report = self._report(peer)
                peer.sendall(report.to_bytes())
            except OSError:
                return  # the peer went away or was too slow; what was done is done, and can be asked again

    def _report(self, peer: socket.socket) -> Report:
        try:
            uid = uid_of(peer)
            if uid not in self.allowed:
                raise AccessDenied(f"user {uid} may not give orders to the mounter")
            return self.carry_out(Order.parse(read_line(peer)))
        except WeightyardError as error:
            return Report(error=type(error).__name__, message=error.message)

    def carry_out(self, order: Order) -> Report:
        """Do what is asked. Raises what `Binder` raises."""
        target = Target.parse(order.target, PurePosixPath(self.binder.kubelet))
        # A mount takes microseconds; two orders for one volume at once would not.
        with self._lock:
            if order.operation is Operation.BIND and order.key is not None:
                return Report(order.key, self.binder.bind(order.key, target))
            if order.operation is Operation.UNBIND:
                return Report(None, self.binder.unbind(target))
            return Report(self.binder.look(target))


def run_mounter(mounter: Mounter, path: Path, owner: int, ready: Callable[[], None]) -> None:
    """Listen at `path`, which `owner` may use, until SIGTERM or SIGINT."""
    server = listen(path)
    os.chown(path, owner, -1)
    server.setblocking(True)
    stopping = threading.Event()

    def stop(*_: object) -> None:
        stopping.set()
        server.shutdown(socket.SHUT_RDWR)  # wakes accept

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    ready()
    with server, ThreadPoolExecutor(_THREADS, thread_name_prefix="mounter") as pool:
        for peer in _peers(server, stopping):
            pool.submit(mounter.answer, peer)
    path.unlink(missing_ok=True)


def uid_of(peer: socket.socket) -> int:
    """The user at the other end, as the kernel knows it."""
    data = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(data)
    return int(uid)


def read_line(peer: socket.socket) -> bytes:
    """One line. Raises InvalidInput when there is none within the limit."""
    data = bytearray()
    while not data.endswith(b"\n"):
        piece = peer.recv(MAX_LINE)
        data += piece
        if not piece or len(data) > MAX_LINE:
            raise InvalidInput("malformed order: no line")
    return bytes(data)


def _peers(server: socket.socket, stopping: threading.Event) -> Iterable[socket.socket]:
    while not stopping.is_set():
        try:
            yield server.accept()[0]
        except OSError:
            if not stopping.is_set():
                raise
