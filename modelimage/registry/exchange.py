"""One HTTP exchange: its values, and the interface shared by the network and its decorators. No sockets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol
from urllib.parse import urlsplit

from modelimage.errors import InvalidInput
from modelimage.repository import BlobStream

_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class WebOrigin:
    """Scheme, host and port: credentials are never sent to another origin than their own (RFC 6454)."""

    scheme: str
    host: str
    port: int

    @classmethod
    def parse(cls, url: str) -> WebOrigin:
        """The origin of an absolute http or https URL. Raises InvalidInput."""
        try:
            parts = urlsplit(url)
            # `port` is parsed only when it is read, and raises for one that isn't a number or too large.
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise InvalidInput(f"not a URL: {url[:200]!r}") from error
        if parts.scheme not in _PORTS or not host:
            raise InvalidInput(f"not an http or https URL: {url[:200]!r}")
        return cls(parts.scheme, host, port or _PORTS[parts.scheme])

    @property
    def encrypted(self) -> bool:
        return self.scheme == "https"

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == _PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{host}{port}"


@dataclass(frozen=True, slots=True)
class Body:
    """A request body of `length` bytes from `open()`, which can be called again for a retry."""

    length: int
    open: Callable[[], Iterator[bytes | memoryview]]

    @classmethod
    def from_bytes(cls, data: bytes) -> Body:
        return cls(len(data), lambda: iter((data,)))


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request. `scopes`: what its token must cover; `repeatable`: whether sending it twice is harmless.

    `timeout`: seconds until the response must begin; None means the default, `patience` times. `named_by`: the server
    that named this URL, if no user or operator did; such a request may not lead to internal addresses. `end`: when the
    whole answer must have been read, streams included, as a time of `time.monotonic`.
    """

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Body | None = None
    scopes: frozenset[str] = frozenset()
    repeatable: bool = True
    timeout: float | None = None
    patience: float = 1.0
    named_by: WebOrigin | None = None
    end: float | None = None

    @property
    def origin(self) -> WebOrigin:
        return WebOrigin.parse(self.url)

    def with_header(self, name: str, value: str | None) -> Request:
        """A copy with one header set, or removed if `value` is None."""
        # Header names are case-insensitive: another spelling would send the header twice.
        headers = {key: text for key, text in self.headers.items() if key.lower() != name.lower()}
        return replace(self, headers=headers if value is None else {**headers, name: value})


class Response(Protocol):
    """A response whose body has not been read. Exactly one of `read`, `stream`, `discard` must be called."""

    @property
    def status(self) -> int: ...

    @property
    def url(self) -> str:
        """The URL that responded, after redirects."""

    def header(self, name: str) -> str | None:
        """A header by case-insensitive name; several of the same name are joined by ', '."""

    def read(self, limit: int) -> bytes:
        """The whole body. Raises RemoteRefused above `limit` bytes, Unreachable if the connection is lost."""

    def stream(self, length: int) -> BlobStream:
        """Stream the body, which must have `length` bytes."""

    def discard(self) -> None:
        """Free the connection."""


class Sender(Protocol):
    """Sends requests. Safe for threads. Raises Unreachable, RateLimited, AccessDenied, RemoteRefused."""

    def send(self, request: Request) -> Response:
        """Perform one exchange. Statuses are returned, not raised, unless a decorator gives up on one."""


@dataclass(frozen=True, slots=True)
class Until:
    """A Sender whose exchanges, all together, must be done at `end`."""

    inner: Sender
    end: float

    def send(self, request: Request) -> Response:
        return self.inner.send(replace(request, end=self.end))
