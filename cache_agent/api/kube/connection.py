"""How to reach an API server: address, TLS, credentials and proxy, as a pod's service account.

The kubelet rotates a service account's token on disk, so it is read again for every request. Kubeconfigs are read by
`kubeconfig`; both make a `Connection`.
"""

from __future__ import annotations

import os
import socket
import ssl
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from modelimage.errors import InvalidInput, NotFound
from modelimage.proxies import environment_proxy

SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
# Seconds. A silent connection is probed after 30 and given up 30 later, as client-go's HTTP/2 pings do it.
_PROBE_AFTER: Final = 30
_PROBE_EVERY: Final = 10
_PROBES: Final = 3


class Credentials(Protocol):
    """Authenticates requests."""

    async def headers(self) -> dict[str, str]:
        """The headers to send with a request. Raises NotFound, AccessDenied, InvalidInput."""

    def tls(self) -> ssl.SSLContext | None:
        """The context for the request after `headers`, with a client certificate if there is one; None for HTTP."""

    def refused(self) -> None:
        """The server returned 401: anything cached is discarded."""


@dataclass(frozen=True, slots=True)
class TokenCredentials:
    """A bearer token, or the file that holds it, which takes precedence and is read for each request."""

    context: ssl.SSLContext | None = None
    token: str | None = field(default=None, repr=False)
    token_file: Path | None = None

    async def headers(self) -> dict[str, str]:
        """The Authorization header; none without a token. Raises NotFound when the token's file can't be read."""
        token = self.token
        if self.token_file is not None:
            token = read(self.token_file).decode().strip()
        return {"Authorization": f"Bearer {token}"} if token else {}

    def tls(self) -> ssl.SSLContext | None:
        return self.context

    def refused(self) -> None:
        """Nothing is cached: the next request reads the file again."""


@dataclass(frozen=True, slots=True)
class Connection:
    """One API server. `server` is its URL without a trailing slash, possibly with a path.

    `server_name` is the name in the server's certificate where it isn't the host of `server`; `impersonate` are the
    Impersonate-* headers of every request.
    """

    server: str
    credentials: Credentials = field(default_factory=TokenCredentials)
    namespace: str = "default"
    proxy: str | None = None
    server_name: str | None = None
    impersonate: tuple[tuple[str, str], ...] = ()


def in_cluster(environ: Mapping[str, str], account: Path = SERVICE_ACCOUNT) -> Connection:
    """A connection as the pod's service account. Raises NotFound outside of a pod."""
    host, port = environ.get("KUBERNETES_SERVICE_HOST"), environ.get("KUBERNETES_SERVICE_PORT")
    if not host or not port:
        raise NotFound(
            "this isn't a pod of a cluster: KUBERNETES_SERVICE_HOST isn't set",
            hint="Set KUBECONFIG to the path of a kubeconfig.",
        )
    shown = f"[{host}]" if ":" in host else host
    server = f"https://{shown}:{port}"
    return Connection(
        server=server,
        credentials=TokenCredentials(
            make_context(read(account / "ca.crt")), token_file=account / "token"
        ),
        namespace=read(account / "namespace").decode().strip(),
        proxy=server_proxy(server, environ),
    )


def probed_socket(address: tuple[Any, ...]) -> socket.socket:
    """A TCP socket for an address of getaddrinfo, whose connection breaks within a minute of the peer's silent end.

    A watch on a load balancer's or machine's dead connection would otherwise miss changes until its read timeout.
    """
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _PROBE_AFTER)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_EVERY)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)
    return made


def server_proxy(server: str, environ: Mapping[str, str] = os.environ) -> str | None:
    """The proxy between us and an API server according to the environment."""
    url = urlsplit(server)
    port = url.port or (443 if url.scheme == "https" else 80)
    return environment_proxy(url.scheme, url.hostname or "", port, environ)


def make_context(authorities: bytes | None, *, verify: bool = True) -> ssl.SSLContext:
    """A client context that trusts these authorities in PEM; the system's if None. Raises InvalidInput."""
    try:
        context = ssl.create_default_context(cadata=authorities.decode() if authorities else None)
    except (ssl.SSLError, ValueError) as error:
        raise InvalidInput(f"the API server's CA isn't a PEM file: {error}") from error
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def add_certificate(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    """Adds a client certificate and its key, both PEM. Raises InvalidInput."""
    # The ssl module reads client certificates only from files.
    with tempfile.NamedTemporaryFile(prefix="weightyard-") as file:
        file.write(certificate + b"\n" + key)
        file.flush()
        try:
            context.load_cert_chain(file.name)
        except (ssl.SSLError, ValueError) as error:
            raise InvalidInput(f"the client certificate can't be used: {error}") from error


def read(path: Path) -> bytes:
    """A file's contents. Raises NotFound."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise NotFound(f"can't read {path}: {error.strerror}") from error
