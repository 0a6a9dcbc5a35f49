"""Accepts connections within limits, so that clients can't take the descriptors that the rest of the agent needs.

asyncio's own servers have no limit, and when descriptors run out they log each failed attempt, tens of thousands a
second. Here each listener and each address has a limit, and a listener waits until there are descriptors again. The
control API keeps one in reserve for that time.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Final

logger = logging.getLogger(__name__)

_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_PAUSE_SECONDS: Final = 0.2
_LOG_SECONDS: Final = 60.0
_HANDSHAKE_SECONDS: Final = 10.0
# Descriptors for everything that isn't a client's connection: files, the ledger, transfers, the control API.
_RESERVE: Final = 512
# Of one listener. An idle connection takes about 40 KB of memory.
_MOST: Final = 1024


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """At most `total` connections, and `each` from one address; more are closed at once.

    `reserve`: whether a connection is accepted even when no descriptor is free, one at a time.
    """

    total: int
    each: int
    reserve: bool = False

    @classmethod
    def of_process(cls) -> ConnectionLimits:
        """The limits of one of the agent's listeners, so that all of them leave descriptors for its other work."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        total = min(_MOST, max(16, (soft - _RESERVE) // 8))
        return cls(total, max(4, total // 4))


# Only processes of this machine reach it. An agent's own commands need a few.
CONTROL_LIMITS: Final = ConnectionLimits(total=128, each=128, reserve=True)


class Acceptor:
    """Accepts the connections of one listening socket and hands each to a new protocol of `make`."""

    def __init__(
        self,
        listening: socket.socket,
        make: Callable[[], asyncio.BaseProtocol],
        limits: ConnectionLimits,
        tls: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._listening, self._make, self._limits, self._tls = listening, make, limits, tls
        self._clock = clock
        self._open: dict[socket.socket, str] = {}
        self._counts: Counter[str] = Counter()
        self._starting: set[asyncio.Task[None]] = set()
        self._spare: int | None = _descriptor() if limits.reserve else None
        self._logged_at: float | None = None
        self._unlogged = 0

    def start(self, stack: AsyncExitStack) -> None:
        """Accept until the stack is left."""
        accepting = asyncio.create_task(self._accept())

        async def stop() -> None:
            tasks = [accepting, *self._starting]
            for each in tasks:
                each.cancel()
            # Before the socket is closed: its number may be another file's at once, and a task must not accept from
            # that.
            await asyncio.gather(*tasks, return_exceptions=True)
            self._listening.close()
            if self._spare is not None:
                os.close(self._spare)

        stack.push_async_callback(stop)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(self._listening)
            except OSError as error:
                # Whatever it is, the listener must outlive it; many are those of a connection that is gone already.
                self._note(f"no connection can be accepted: {error.strerror}")
                if error.errno not in _EXHAUSTED or not self._use_spare():
                    await asyncio.sleep(_PAUSE_SECONDS)
                continue
            # A unix socket has no address; its clients are users of this machine.
            peer = address[0] if isinstance(address, tuple) else ""
            if not self._admits(peer):
                connection.close()
                continue
            self._open[connection] = peer
            self._counts[peer] += 1
            # A task for each: a client that is slow in its TLS handshake must not keep others from being accepted.
            # Kept in a set, as the loop alone holds tasks weakly.
            starting = asyncio.create_task(self._serve(connection))
            self._starting.add(starting)
            starting.add_done_callback(self._starting.discard)

    async def _serve(self, connection: socket.socket) -> None:
        handshake = _HANDSHAKE_SECONDS if self._tls else None
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._make, connection, ssl=self._tls, ssl_handshake_timeout=handshake
            )
        except (OSError, ssl.SSLError) as error:
            logger.debug("a connection failed at its start: %s", error)
            # No transport has it yet that would close it.
            connection.close()
        except asyncio.CancelledError:
            connection.close()
            raise
        # The one that `_use_spare` gave up, as soon as a descriptor is free.
        if self._limits.reserve and self._spare is None:
            with suppress(OSError):
                self._spare = _descriptor()

    def _admits(self, peer: str) -> bool:
        limits = self._limits
        if len(self._open) >= limits.total or self._counts[peer] >= limits.each:
            # Their transports close the sockets; nobody tells when.
            self._open = {each: of for each, of in self._open.items() if each.fileno() >= 0}
            self._counts = Counter(self._open.values())
        if len(self._open) >= limits.total:
            self._note(f"{limits.total} connections are open: others are refused")
            return False
        if self._counts[peer] >= limits.each:
            self._note(f"{limits.each} connections from {peer} are open: others are refused")
            return False
        return True

    def _use_spare(self) -> bool:
        """Frees the descriptor in reserve for the next connection; whether there was one."""
        if self._spare is None:
            return False
        os.close(self._spare)
        self._spare = None
        return True

    def _note(self, message: str) -> None:
        """Logs at most once in a while: whoever causes this can cause it thousands of times a second."""
        now = self._clock()
        if self._logged_at is not None and now - self._logged_at < _LOG_SECONDS:
            self._unlogged += 1
            return
        more = f" ({self._unlogged} more since the last such line)" if self._unlogged else ""
        logger.warning("%s: %s%s", self._listening.getsockname(), message, more)
        self._logged_at, self._unlogged = now, 0


def _descriptor() -> int:
    return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
