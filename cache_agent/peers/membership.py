"""The list of peers, from the settings and from a DNS name. No tracker, no election.

A headless service's name resolves to the addresses of its pods, so the same code works in Kubernetes and elsewhere.
While DNS fails, its last result is used. This node works as a member even before others see it.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from cache_agent.net.listen_addresses import Address
from cache_agent.peers.values import Member

REFRESH_SECONDS: Final = 10.0
# All addresses of a host name, A and AAAA. Raises OSError.
Resolve = Callable[[str], Sequence[str]]


def resolve_host(host: str) -> list[str]:
    """Resolve a host with the system's resolver. Raises OSError."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return sorted({str(sockaddr[0]) for *_, sockaddr in found})


@dataclass
class Membership:
    """The other members, refreshed by its callers' threads. Thread-safe.

    `own`: this node's name. `dns`: `host:port`; each address of the host is a member.
    """

    own: str
    listed: Sequence[Member] = ()
    dns: Address | None = None
    monotonic: Callable[[], float] = lambda: 0.0
    resolve: Resolve = resolve_host
    _found: tuple[Member, ...] = ()
    _until: float = float("-inf")
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def may_have_others(self) -> bool:
        """Whether there are other members, or may be later."""
        return self.dns is not None or bool(self.others())

    def others(self) -> list[Member]:
        """All members except this node, each once, by name; the settings' entry wins over DNS."""
        # Listed members last: their entry has a zone, which DNS doesn't.
        every = {member.id: member for member in (*self._from_dns(), *self.listed)}
        every.pop(self.own, None)
        return sorted(every.values(), key=lambda member: member.id)

    def _from_dns(self) -> tuple[Member, ...]:
        if self.dns is None:
            return ()
        with self._lock:
            due = self.monotonic() >= self._until
            if due:
                # Set before resolving: other threads use the old result meanwhile instead of waiting.
                self._until = self.monotonic() + REFRESH_SECONDS
        if due:
            self._ask(self.dns)
        return self._found

    def _ask(self, name: Address) -> None:
        try:
            hosts = self.resolve(name.host)
        except OSError:
            return  # the name has no pods yet, or DNS fails: keep the last result
        self._found = tuple(Member(str(Address(host, name.port))) for host in hosts)
