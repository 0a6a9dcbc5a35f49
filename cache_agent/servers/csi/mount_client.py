"""The client of the mounter: sends each batch of orders over a connection of its own.

No state outlives a connection, so either side may crash and restart at any time.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cache_agent.mounter.orders import MAX_LINES, MountOperation, Order, Report
from cache_agent.mounter.server import lines_of
from cache_agent.net.sockets import connect
from cache_agent.node.threads import BlockingExecutor
from cache_agent.servers.batcher import Batcher
from modelimage import errors
from modelimage.digest import Digest
from modelimage.errors import InvalidInput, NotWritable, Unreachable, WeightyardError

_SECONDS = 10.0
_PROBE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class MounterClient:
    """Sends orders to the mounter at a unix socket. Blocking."""

    path: Path

    def give(self, orders: Sequence[Order]) -> list[Report]:
        """Send orders; return one report each, in order. Unreachable if none came: the order may have been executed."""
        reports: list[Report] = []
        for begin in range(0, len(orders), MAX_LINES):
            reports += self._give(orders[begin : begin + MAX_LINES])
        return reports

    def problem(self) -> str | None:
        """Why the mounter can't carry out orders, for readiness; None when it answers."""
        try:
            with connect(self.path, _PROBE_SECONDS) as peer:
                peer.shutdown(socket.SHUT_WR)
                # Without an order it answers with nothing and hangs up.
                peer.recv(1)
        except OSError as error:
            return f"the mounter at {self.path} doesn't answer: {error}"
        return None

    def _give(self, orders: Sequence[Order]) -> list[Report]:
        try:
            with connect(self.path, _SECONDS) as peer:
                peer.sendall(b"".join(order.to_bytes() for order in orders))
                # The mounter reads to the end of the stream before it executes the first order.
                peer.shutdown(socket.SHUT_WR)
                reports = [Report.parse(line) for line in lines_of(peer)]
        except (OSError, InvalidInput) as error:
            # How many of the orders were executed is unknown, so none is reported as failed or done.
            return [_unreachable(f"the mounter at {self.path} doesn't answer: {error}")] * len(
                orders
            )
        if len(reports) != len(orders):
            return [_unreachable(f"the mounter at {self.path} ended")] * len(orders)
        return reports


def _unreachable(message: str) -> Report:
    return Report(error=Unreachable.__name__, message=message)


def checked(report: Report) -> Report:
    """Return a report of success. Raises the mounter's error, or Unreachable when it didn't answer."""
    if not report.error:
        return report
    # The name comes over a socket: only error classes may be looked up by it.
    kind = getattr(errors, report.error, NotWritable)
    if not (isinstance(kind, type) and issubclass(kind, WeightyardError)):
        kind = NotWritable
    hint = "Look at the log of the mounter's container." if kind is Unreachable else None
    raise kind(report.message, hint=hint)


class Mounts:
    """The pods' mounts, for coroutines. Methods raise the mounter's errors, Unreachable when it doesn't answer.

    A cancelled order may still be executed, but always before any order that is sent later.
    """

    def __init__(self, client: MounterClient, executor: BlockingExecutor) -> None:
        self._orders = Batcher(executor, client.give)

    async def bind(self, key: Digest, target: str) -> bool:
        """See `Binder.bind`."""
        return (await self._give(Order(MountOperation.BIND, target, key))).changed

    async def unbind(self, target: str) -> bool:
        """See `Binder.unbind`."""
        return (await self._give(Order(MountOperation.UNBIND, target))).changed

    async def look(self, target: str) -> Digest | None:
        """See `Binder.look`."""
        return (await self._give(Order(MountOperation.LOOK, target))).key

    async def _give(self, order: Order) -> Report:
        return checked(await self._orders.ask(order))
