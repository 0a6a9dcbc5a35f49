"""How the agent gives orders to the mounter. Blocking; one connection each, so a mounter may restart."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cache_agent.mounter.orders import Operation, Order, Report
from cache_agent.mounter.server import read_line
from cache_agent.sockets import connect
from modelimage import errors
from modelimage.digest import Digest
from modelimage.errors import NotWritable, Unreachable, WeightyardError

_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class MounterClient:
    """Talks to the mounter at a socket. Raises what the mounter raised, Unreachable when it doesn't answer."""

    path: Path

    def bind(self, key: Digest, target: str) -> bool:
        """See `Binder.bind`."""
        return self._give(Order(Operation.BIND, target, key)).changed

    def unbind(self, target: str) -> bool:
        """See `Binder.unbind`."""
        return self._give(Order(Operation.UNBIND, target)).changed

    def look(self, target: str) -> Digest | None:
        """See `Binder.look`."""
        return self._give(Order(Operation.LOOK, target)).key

    def _give(self, order: Order) -> Report:
        try:
            with connect(self.path, _SECONDS) as peer:
                peer.sendall(order.to_bytes())
                report = Report.parse(read_line(peer))
        except OSError as error:
            raise Unreachable(
                f"the mounter at {self.path} doesn't answer: {error}",
                hint="Look at the log of the mounter's container.",
            ) from error
        if report.error:
            kind = getattr(errors, report.error, NotWritable)
            known = isinstance(kind, type) and issubclass(kind, WeightyardError)
            raise (kind if known else NotWritable)(report.message)
        return report
