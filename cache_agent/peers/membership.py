"""Who the peers are: a list from the settings, and what a DNS name gives. No tracker, no election.

A headless service's name gives the addresses of the pods behind it, so the same code finds peers in Kubernetes and
anywhere else. What DNS said last counts while DNS is away; this node is a member whether others see it yet or not.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from cache_agent.net.addresses import Address
from cache_agent.peers.values import Member

REFRESH_SECONDS: Final = 10.0
# All addresses of a host name, A and AAAA. Raises OSError.
Resolve = Callable[[str], Sequence[str]]


def resolve_host(host: str) -> list[str]:
    """What the system's resolver says."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return sorted({str(sockaddr[0]) for *_, sockaddr in found})


@dataclass
class Membership:
    """The other members, kept fresh by whoever asks. Safe for threads.

    `own`: the name this node goes by. `dns`: `host:port` of a name whose every address is a member's.
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
        """Whether there is anybody to expect, now or later."""
        return self.dns is not None or bool(self.others())

    def others(self) -> list[Member]:
        """All members but this node, each once, those listed first."""
        every = {member.id: member for member in (*self._from_dns(), *self.listed)}
        every.pop(self.own, None)
        return sorted(every.values(), key=lambda member: member.id)

    def _from_dns(self) -> tuple[Member, ...]:
        if self.dns is None:
            return ()
        with self._lock:
            due = self.monotonic() >= self._until
            if due:
                # Whoever asks next meanwhile gets the old answer rather than to wait.
                self._until = self.monotonic() + REFRESH_SECONDS
        if due:
            self._ask(self.dns)
        return self._found

    def _ask(self, name: Address) -> None:
        try:
            hosts = self.resolve(name.host)
        except OSError:
            return  # the name may have no pods yet, or DNS is away: what was known stays
        self._found = tuple(Member(str(Address(host, name.port))) for host in hosts)
