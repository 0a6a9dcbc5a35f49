"""Combines the decorators: redirects over retries over the network. Holds the state that repositories share."""

from __future__ import annotations

import threading
from collections.abc import Callable

from modelimage.registry.destinations import Destinations
from modelimage.registry.exchange import Sender, WebOrigin
from modelimage.registry.host_limit import HostLimit
from modelimage.registry.network_options import Timeouts, TlsOptions, proxy_of
from modelimage.registry.redirect import FollowingRedirects
from modelimage.registry.retry import Backoff, Environment, HostPauses, Retrying, RetryPolicy


class Connections:
    """Connection pools and the pauses requested by hosts, shared by the repositories of an Access. Safe for threads."""

    def __init__(
        self,
        *,
        timeouts: Timeouts | None = None,
        policy: RetryPolicy | None = None,
        environment: Environment | None = None,
        pauses: HostPauses | None = None,
        proxy_for: Callable[[WebOrigin], str | None] = proxy_of,
        per_host: int | None = None,
    ) -> None:
        """`per_host`: how many requests may wait for one host; None for any number."""
        self._per_host = per_host
        self._timeouts = timeouts or Timeouts()
        self._policy = policy or RetryPolicy()
        self._environment = environment or Environment()
        self._pauses = pauses or HostPauses()
        self._proxy_for = proxy_for
        self.backoff = Backoff(self._policy, self._environment)
        self._senders: dict[tuple[TlsOptions, Destinations], Sender] = {}
        # Held while a stack is made: two for one setting would have two pools, and twice a host's limit.
        self._lock = threading.Lock()

    def sender(self, tls: TlsOptions, destinations: Destinations | None = None) -> Sender:
        """A Sender without authorization and with these TLS options. Raises InvalidInput for an unusable CA file."""
        # Imported late: urllib3 costs more than many commands that then need no network.
        from modelimage.registry.transport import Network  # noqa: PLC0415

        # One stack of decorators per setting, so that all repositories share its connection pools.
        allowed = destinations or Destinations()
        with self._lock:
            if (tls, allowed) not in self._senders:
                network = Network(tls, self._timeouts, self._proxy_for, allowed)
                # Redirects outside, retries inside: each hop is retried at its own host, which may be a storage server.
                retrying = Retrying(network, self._pauses, self._policy, self._environment)
                following = FollowingRedirects(retrying)
                limit = self._per_host
                self._senders[tls, allowed] = (
                    following if limit is None else HostLimit(following, limit)
                )
            return self._senders[tls, allowed]
