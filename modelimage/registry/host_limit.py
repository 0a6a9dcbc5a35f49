"""Limits the requests that wait for one host at a time, so that a slow one can't hold every thread of a server."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field

from modelimage.errors import RateLimited
from modelimage.registry.exchange import Request, Response, Sender, WebOrigin


class HostBusy(RateLimited):
    """Too many requests wait for this host already. Says nothing about the host itself."""


@dataclass
class HostLimit:
    """A Sender of which at most `most` calls wait for one host; others raise HostBusy. Safe for threads."""

    inner: Sender
    most: int
    _waiting: Counter[WebOrigin] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def send(self, request: Request) -> Response:
        """See `Sender.send`."""
        # The host that was asked first: whichever it names in turn is its own affair.
        origin = request.named_by or request.origin
        with self._lock:
            if self._waiting[origin] >= self.most:
                raise HostBusy(
                    f"{self.most} requests already wait for {origin}",
                    hint="It answers slowly: try again later, or ask it directly.",
                    retry_after=1.0,
                )
            self._waiting[origin] += 1
        try:
            return self.inner.send(request)
        finally:
            with self._lock:
                self._waiting[origin] -= 1
                if not self._waiting[origin]:
                    # Tenants choose hosts, so their number must not grow for ever.
                    del self._waiting[origin]
