"""Network access through urllib3's connection pools, with mapped errors and bounded time.

Bodies are read from the socket directly into the caller's buffer. A transfer without progress for `stall` seconds is
Unreachable, so that the caller can use another source. Handles no credentials, redirects or retries.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final

import urllib3
import urllib3.exceptions
from urllib3.util import parse_url

from modelimage.errors import InvalidInput, RemoteRefused, Unreachable, WeightyardError
from modelimage.registry.bounded_connection import (
    LimitedTlsSocket,
    TimeLimit,
    time_limited,
    use_limited_connections,
)
from modelimage.registry.destinations import Destinations, network_hint
from modelimage.registry.exchange import Body, Request, WebOrigin
from modelimage.registry.network_options import Timeouts, TlsOptions, is_loopback, proxy_of

_SEND_SLICE: Final = 256 << 10
_READ_SLICE: Final = 64 << 10
# A larger body isn't worth reading just to reuse its connection.
_DISCARD_LIMIT: Final = 64 << 10
_CONNECTIONS_PER_HOST: Final = 64
_AGENT: Final = "weightyard"


class Network:
    """A Sender over sockets. Safe for threads."""

    def __init__(
        self,
        tls: TlsOptions,
        timeouts: Timeouts,
        proxy_for: Callable[[WebOrigin], str | None] = proxy_of,
        destinations: Destinations | None = None,
    ) -> None:
        self._tls = tls
        self._timeouts = timeouts
        self._proxy_for = proxy_for
        self._destinations = destinations or Destinations()
        # An unusable CA file is reported now; the system's authorities are loaded at the first TLS connection.
        self._context = _ssl_context(tls) if tls.ca_file is not None else None
        self._managers: dict[tuple[str | None, bool], urllib3.PoolManager] = {}
        self._lock = threading.Lock()

    def send(self, request: Request) -> NetworkResponse:
        """Perform one exchange, without retries. Raises Unreachable, RemoteRefused."""
        origin = request.origin
        proxy = None if is_loopback(origin.host) else self._proxy_for(origin)
        addresses = self._addresses(request, origin, proxied=proxy is not None)
        manager = self._manager(proxy, secure=origin.scheme == "https")
        # Identity: digests and ranges are of the stored bytes, which a compressing proxy would change.
        headers = {"Accept-Encoding": "identity", "User-Agent": _AGENT, **request.headers}
        if request.body is not None:
            headers["Content-Length"] = str(request.body.length)
        stall = request.timeout or self._timeouts.stall * request.patience
        # Redirects and retries belong to the decorators, which handle credentials and body offsets correctly.
        limit = TimeLimit(self._end(request))
        with network_errors(origin), time_limited(limit):
            response = _first_connected(
                addresses,
                lambda address: _channel(manager, request, address).urlopen(
                    request.method,
                    request.url if address is None else parse_url(request.url).request_uri,
                    headers=headers
                    if address is None
                    else {**headers, "Host": _host_header(origin)},
                    body=None if request.body is None else _slices(request.body),
                    timeout=urllib3.Timeout(connect=self._timeouts.connect, read=stall),
                    retries=False,
                    redirect=False,
                    preload_content=False,
                    decode_content=False,
                ),
            )
        return NetworkResponse(response, request, limit)

    def _end(self, request: Request) -> float | None:
        """When the answer must have been read. Not for uploads, whose bytes take as long as they take."""
        if request.timeout is not None or (request.body and request.body.length > _SEND_SLICE):
            return request.end
        own = time.monotonic() + self._timeouts.answer
        return own if request.end is None else min(own, request.end)

    def _addresses(
        self, request: Request, origin: WebOrigin, *, proxied: bool
    ) -> tuple[str | None, ...]:
        """The addresses to try; None stands for those of the URL's own name. Raises RemoteRefused, Unreachable."""
        if request.named_by is None:
            return (None,)
        try:
            allowed = self._destinations.addresses(origin, request.named_by)
        except Unreachable:
            # Only the proxy can resolve the name then, and it has rules of its own.
            if proxied:
                return (None,)
            raise
        return (None,) if allowed is None or proxied else allowed

    def _manager(self, proxy: str | None, *, secure: bool) -> urllib3.PoolManager:
        # Under the lock: two managers for one proxy would double the connections to a host.
        with self._lock:
            name = proxy, secure
            if name not in self._managers:
                options: dict[str, Any] = {"maxsize": _CONNECTIONS_PER_HOST}
                if secure:
                    options["ssl_context"] = self._context or _ssl_context(self._tls)
                manager = (
                    urllib3.ProxyManager(proxy, **options)
                    if proxy
                    else urllib3.PoolManager(**options)
                )
                use_limited_connections(manager)
                self._managers[name] = manager
            return self._managers[name]


def _first_connected(
    addresses: Sequence[str | None], send: Callable[[str | None], urllib3.BaseHTTPResponse]
) -> urllib3.BaseHTTPResponse:
    """The response from the first address that can be connected to; the last one's error if there is none."""
    for address in addresses[:-1]:
        # Nothing of the body was sent: these two are raised before a connection exists.
        with contextlib.suppress(
            urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError
        ):
            return send(address)
    return send(addresses[-1])


def _channel(manager: urllib3.PoolManager, request: Request, address: str | None) -> Any:
    """What sends a request: the pool of a checked address, whose certificate must still be that of the name."""
    if address is None:
        return manager
    origin = request.origin
    names = {"server_hostname": origin.host, "assert_hostname": origin.host}
    return manager.connection_from_host(
        address, origin.port, origin.scheme, pool_kwargs=names if origin.encrypted else None
    )


def _host_header(origin: WebOrigin) -> str:
    return str(origin).partition("://")[2]


class NetworkResponse:
    """A Response that reads from its socket."""

    def __init__(
        self, response: urllib3.BaseHTTPResponse, request: Request, limit: TimeLimit
    ) -> None:
        self._response = response
        self.url = request.url
        self._origin = request.origin
        self._limit = limit
        self._end = request.end

    @property
    def status(self) -> int:
        return self._response.status

    def header(self, name: str) -> str | None:
        value = self._response.headers.get(name)
        # A folded value holds line ends, which stand for a space (RFC 9112, section 5.2), and may be sent on.
        return None if value is None else "".join(c if c.isprintable() else " " for c in value)

    def read(self, limit: int) -> bytes:
        out = bytearray()
        with network_errors(self._origin), contextlib.closing(self._response):
            while piece := self._response.read(_READ_SLICE):
                out += piece
                if len(out) > limit:
                    raise RemoteRefused(f"{self._origin} answered with more than {limit} bytes")
            self._response.release_conn()
        return bytes(out)

    def stream(self, length: int) -> SocketStream:
        # A stream may last as long as it makes progress, unless all of the caller's question has an end.
        self._limit.at = self._end
        return SocketStream(self._response, length, self._origin)

    def discard(self) -> None:
        # The connection can be reused only after the body is read: worthwhile for small bodies, such as errors.
        with contextlib.suppress(Unreachable, RemoteRefused):
            self.read(_DISCARD_LIMIT)


class SocketStream:
    """A BlobStream of exactly `length` bytes on a socket."""

    def __init__(self, response: urllib3.BaseHTTPResponse, length: int, origin: WebOrigin) -> None:
        self._response = response
        # urllib3's own readinto copies; http.client's, below it, reads directly into the buffer.
        self._raw: Any = response._fp  # type: ignore[attr-defined]
        self._origin = origin
        self._left = length
        self._closed = False
        # Held during a read: the response must not be closed under the thread that reads it.
        self._reading = threading.Lock()
        # A second descriptor of the socket, so that another thread can end a blocked read on the first.
        self._handle = _second_handle(self._raw) if length else None

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill part of the buffer; 0 only after the last promised byte. Raises Unreachable."""
        if not self._left:
            return 0
        with self._reading, network_errors(self._origin):
            count = 0 if self._closed else self._read(buffer[: self._left])
        if not count:
            reason = "was closed" if self._closed else "was cut off"
            raise Unreachable(
                f"the transfer from {self._origin} {reason} with {self._left} bytes left",
                hint="Try again: the received bytes are kept.",
            )
        self._left -= count
        return count

    def _read(self, buffer: memoryview) -> int:
        """The bytes from one read of the socket.

        http.client's own readinto blocks until the buffer is full, which would hide a slow sender's progress.
        """
        raw = self._raw
        # Chunked bodies have their own framing, which only http.client decodes.
        if raw.fp is None or raw.chunked or raw.length is None:
            return int(raw.readinto(buffer))
        count = int(raw.fp.readinto1(buffer))
        raw.length -= count
        if not raw.length:
            raw._close_conn()  # frees the connection for the next request
        return count

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        # Shut down without the lock: a blocked reader holds it until its socket ends.
        finished = self._left == 0 and self._raw.isclosed()
        if self._handle is not None:
            with contextlib.closing(self._handle), contextlib.suppress(OSError):
                if not finished:
                    self._handle.shutdown(socket.SHUT_RDWR)
        with self._reading:
            if not finished:
                self._response.close()
            self._response.release_conn()


@contextlib.contextmanager
def network_errors(origin: WebOrigin) -> Iterator[None]:
    """Map exceptions of urllib3, http.client and sockets to our classes; ours pass unchanged."""
    try:
        yield
    except WeightyardError:
        raise
    except urllib3.exceptions.SSLError as error:
        raise RemoteRefused(
            f"no secure connection to {origin}: {error}",
            hint="Give the authority's certificate with --ca-file, or --plain-http for a registry without TLS.",
        ) from error
    except (urllib3.exceptions.LocationValueError, urllib3.exceptions.URLSchemeUnknown) as error:
        raise RemoteRefused(f"{origin} redirected to an unusable URL: {error}") from error
    except urllib3.exceptions.NewConnectionError as error:  # a subclass of TimeoutError
        raise _no_talk(origin, error) from error
    except (TimeoutError, urllib3.exceptions.TimeoutError) as error:
        raise Unreachable(
            f"{origin} made no progress in time", hint="Check the network and the host."
        ) from error
    except (urllib3.exceptions.HTTPError, HTTPException, OSError, ValueError) as error:
        raise _no_talk(origin, error) from error


def _no_talk(origin: WebOrigin, error: Exception) -> Unreachable:
    return Unreachable(f"can't talk to {origin}: {_reason(error)}", hint=network_hint(origin.host))


def _reason(error: Exception) -> str:
    cause: BaseException = error
    # The innermost cause is the system's message; urllib3's own repeat the URL and the pool.
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return str(cause) or type(cause).__name__


def _second_handle(raw: Any) -> socket.socket | None:
    try:
        return socket.socket(fileno=os.dup(raw.fileno()))
    except (OSError, ValueError):
        # The response is already complete, for example an empty body: no read can block.
        return None


def _slices(body: Body) -> Iterator[Any]:
    """Split the body into slices small enough to be sent within the stall timeout."""
    for buffer in body.open():
        view = memoryview(buffer).cast("B")
        for start in range(0, len(view), _SEND_SLICE):
            yield view[start : start + _SEND_SLICE]


def trusting(ca_file: Path | None) -> ssl.SSLContext:
    """A context that trusts the system's authorities, and those of a PEM file. Raises InvalidInput."""
    context = ssl.create_default_context()
    if ca_file is not None:
        try:
            context.load_verify_locations(cafile=ca_file)
        except (OSError, ssl.SSLError) as error:
            raise InvalidInput(
                f"{ca_file} holds no usable certificate: {error}",
                hint="Give a PEM file of the authority's certificates.",
            ) from error
    return context


def _ssl_context(tls: TlsOptions) -> ssl.SSLContext:
    context = trusting(tls.ca_file)
    context.sslsocket_class = LimitedTlsSocket
    if not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        # The user disabled verification explicitly; a warning per request would only hide others.
        warnings.simplefilter("ignore", urllib3.exceptions.InsecureRequestWarning)
    return context
