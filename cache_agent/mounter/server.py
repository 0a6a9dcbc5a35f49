"""The mounter's socket server: serves one user only, each connection in a thread, with a timeout for slow peers.

A connection's orders run one after the other, so a batch costs one connection and no thread switch per order.
"""

from __future__ import annotations

import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Final

from cache_agent.mounter.binder import Binder
from cache_agent.mounter.orders import (
    MAX_LINE,
    MAX_LINES,
    MountOperation,
    Order,
    Report,
    VolumeTarget,
)
from modelimage.errors import AccessDenied, InvalidInput, WeightyardError, public_name

_PEER_SECONDS: Final = 5.0
_THREADS: Final = 32
_LOCKS: Final = 64
_PAUSE_SECONDS: Final = 0.2
_BEAT_SECONDS: Final = 10.0
_CREDENTIALS: Final = struct.Struct("3i")


@dataclass
class Mounter:
    """Executes one user's orders, serialized per volume."""

    binder: Binder
    user: int
    # A fixed number: one lock per volume would accumulate.
    _locks: list[threading.Lock] = field(
        default_factory=lambda: [threading.Lock() for _ in range(_LOCKS)]
    )

    # Connections beyond the threads wait in the kernel, where they take no descriptor of this process.
    _free: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(_THREADS))

    def serve(
        self, server: socket.socket, ready: Callable[[], None], beat: Callable[[], None]
    ) -> None:
        """Serve until SIGTERM or SIGINT, then finish running orders.

        `beat` is called after each connection and each 10 s without one, unless all threads are busy.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            # Raised in `accept`; leaving the executor then waits for running orders.
            signal.signal(number, lambda *_: sys.exit(0))
        server.settimeout(_BEAT_SECONDS)
        with server, ThreadPoolExecutor(_THREADS, thread_name_prefix="mounter") as pool:
            ready()
            while True:
                self._accept(server, pool)
                beat()

    def _accept(self, server: socket.socket, pool: ThreadPoolExecutor) -> None:
        """Hand one connection to a thread, once one is free. Whatever fails, the next one is accepted.

        Without a connection, returns after the timeout of `server`.
        """
        self._free.acquire()
        try:
            peer = server.accept()[0]
            try:
                pool.submit(self.answer, peer).add_done_callback(lambda _: self._free.release())
            except RuntimeError:  # no thread can be made
                peer.close()
                raise
        except TimeoutError:
            self._free.release()
        except (OSError, RuntimeError):
            # No descriptor, no memory, or a peer that is gone already.
            self._free.release()
            time.sleep(_PAUSE_SECONDS)

    def answer(self, peer: socket.socket) -> None:
        """Read all orders of a connection, execute them, and reply with one report each."""
        with peer:
            peer.settimeout(_PEER_SECONDS)
            try:
                peer.sendall(b"".join(report.to_bytes() for report in self._reports(peer)))
            except OSError:
                return  # the peer left or was too slow; orders are idempotent and can be repeated

    def _reports(self, peer: socket.socket) -> list[Report]:
        try:
            lines = lines_of(peer)
        except InvalidInput as error:
            return [_failure(error)]
        uid = _uid_of(peer)
        return [self._report(uid, line) for line in lines]

    def _report(self, uid: int, line: bytes) -> Report:
        try:
            if uid != self.user:
                raise AccessDenied(f"user {uid} may not use the mounter")
            return self.carry_out(Order.parse(line))
        except WeightyardError as error:
            return _failure(error)

    def carry_out(self, order: Order) -> Report:
        """Execute one order. Raises what `Binder` raises."""
        target = VolumeTarget.parse(order.target, PurePosixPath(self.binder.kubelet))
        with self._locks[hash(target) % _LOCKS]:
            if order.operation is MountOperation.BIND and order.key is not None:
                return Report(order.key, self.binder.bind(order.key, target))
            if order.operation is MountOperation.UNBIND:
                return Report(None, self.binder.unbind(target))
            return Report(self.binder.look(target))


def _uid_of(peer: socket.socket) -> int:
    """The uid of the peer, as reported by the kernel."""
    data = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(data)[1])


def _failure(error: WeightyardError) -> Report:
    return Report(error=public_name(error), message=error.message)


def lines_of(peer: socket.socket) -> list[bytes]:
    """Read a peer's lines until end of file. Raises OSError, and InvalidInput beyond the limits."""
    lines: list[bytes] = []
    with peer.makefile("rb") as file:
        # Bounded: an endless line must not fill the memory.
        while line := file.readline(MAX_LINE):
            lines.append(line)
            if not line.endswith(b"\n") or len(lines) > MAX_LINES:
                raise InvalidInput("malformed requests: a line is too long, or there are too many")
    return lines
