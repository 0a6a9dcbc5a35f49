"""Follows redirects itself, because credentials must stay with their origin.

Registries redirect blobs to object stores with signed URLs; those reject the registry's token and must not see it.
"""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import urljoin

from modelimage.errors import InvalidInput, RemoteRefused
from modelimage.registry.exchange import Request, Response, Sender, WebOrigin

_MAX_HOPS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# The other statuses may turn a write into a GET, which would lose the body.
_KEEPS_METHOD = frozenset({307, 308})


class FollowingRedirects:
    """A Sender that follows at most five redirects."""

    def __init__(self, inner: Sender) -> None:
        self._inner = inner

    def send(self, request: Request) -> Response:
        """Send and follow redirects. Raises RemoteRefused if they are endless, malformed, or leave encryption."""
        for _ in range(_MAX_HOPS + 1):
            response = self._inner.send(request)
            location = response.header("Location")
            if response.status not in _REDIRECTS or location is None:
                return response
            # Its body is of no use, and an open one would keep the connection from the next hop.
            response.discard()
            request = next_hop(request, response.status, location)
        raise RemoteRefused(f"{request.origin} redirects too often")


def next_hop(request: Request, status: int, location: str) -> Request:
    """The next request after a redirect. Pure. Raises RemoteRefused."""
    here = request.origin
    if request.method not in ("GET", "HEAD") and status not in _KEEPS_METHOD:
        raise RemoteRefused(f"{here} redirects a {request.method} with status {status}")
    try:
        url = urljoin(request.url, location)
        there = WebOrigin.parse(url)
    except (ValueError, InvalidInput) as error:
        raise RemoteRefused(f"{here} redirects to {location[:200]!r}") from error
    # A redirect must not downgrade a request made over TLS.
    if here.encrypted and not there.encrypted:
        raise RemoteRefused(
            f"{here} redirects to {there}, which isn't encrypted",
            hint="Serve the registry's storage over HTTPS.",
        )
    moved = replace(request, url=url, named_by=request.named_by or here)
    # Only the same origin may see the token: scheme, host and port.
    return moved if there == here else moved.with_header("Authorization", None)
