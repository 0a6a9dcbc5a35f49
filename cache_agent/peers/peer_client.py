"""HTTP client for other nodes: requests their chunk lists and chunks. Signs each request; trusts nothing.

No proxy, no redirects, no retries: after a bad response another peer is used. It has no registry or Hub tokens, so none
can leave the node.
"""

from __future__ import annotations

import secrets
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import urllib3

from cache_agent.peers.announcements import ChunkId
from cache_agent.peers.request_signatures import Key, SignedRequest, Stamp, sign
from cache_agent.peers.values import MAX_HAVE_BYTES, Have
from modelimage.digest import Digest
from modelimage.errors import (
    AccessDenied,
    InvalidInput,
    NotFound,
    RateLimited,
    RemoteRefused,
    Unreachable,
)
from modelimage.ranges import ByteRange, parse_content_range
from modelimage.registry.bounded_connection import TimeLimit
from modelimage.registry.exchange import Request, WebOrigin
from modelimage.registry.transport import NetworkResponse, SocketStream, network_errors
from modelimage.repository import BlobStream

# Of the time without progress after which a peer is left: a node that is gone must not delay the decision on a chunk.
_CONNECT_SHARE: Final = 0.1
_ANSWER_SHARE: Final = 0.3
_ERROR_BYTES: Final = 4096
# urllib3 drops the least used pool beyond this number, and its open connections with it.
_POOLS: Final = 256
_CONNECTIONS: Final = 8


def have_path(sha256: Digest, file: Digest) -> str:
    """The URL path of a peer's chunk list of a file, by its sha256 and the identity of its record's claims."""
    return f"/v1/files/{sha256.hex}/{file.hex}"


def chunk_path(sha256: Digest, chunk: ChunkId) -> str:
    """The URL path of a chunk on a peer."""
    return f"{have_path(sha256, chunk.file)}/chunks/{chunk.index}"


class PeerLink(Protocol):
    """The requests to another node. Raises NotFound, AccessDenied, Unreachable, RateLimited, RemoteRefused."""

    def have(self, peer: str, sha256: Digest, file: Digest) -> Have:
        """The chunks of a file that it has. Raises NotFound when it has none and isn't fetching the file."""

    def chunk(
        self, peer: str, sha256: Digest, chunk: ChunkId, wanted: ByteRange
    ) -> AbstractContextManager[BlobStream]:
        """A byte range of a chunk, relative to the chunk's beginning."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files for mutual TLS. `name`: the name required in every peer's certificate; None checks the CA only."""

    ca: Path
    certificate: Path
    key: Path
    name: str | None = None

    def client_context(self) -> ssl.SSLContext:
        """The context for requests to peers. Raises InvalidInput."""
        context = self._context(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = self.name is not None
        return context

    def server_context(self) -> ssl.SSLContext:
        """The context for the server: clients need a certificate of this authority. Raises InvalidInput."""
        return self._context(ssl.PROTOCOL_TLS_SERVER)

    def _context(self, protocol: int) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        if protocol == ssl.PROTOCOL_TLS_CLIENT:
            context.check_hostname = False
        # Both sides: every node of the cluster proves that it belongs to it.
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(cafile=self.ca)
            context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            raise InvalidInput(
                f"peers.tls: {error}", hint="Give PEM files of the CA, the certificate and its key."
            ) from error
        return context


@dataclass
class PeerClient:
    """Sends requests signed as the node `own`. Thread-safe. `clock`: wall time in seconds."""

    own: str
    keys: Callable[[], tuple[Key, ...]]
    clock: Callable[[], float]
    tls: TlsFiles | None = None
    stall: float = 10.0
    nonce: Callable[[], str] = lambda: secrets.token_hex(12)
    _pools: urllib3.PoolManager = field(init=False)

    def __post_init__(self) -> None:
        options: dict[str, object] = {"num_pools": _POOLS, "maxsize": _CONNECTIONS}
        if self.tls is not None:
            options["ssl_context"] = self.tls.client_context()
            options["server_hostname"] = self.tls.name
            options["assert_hostname"] = self.tls.name or False
        self._pools = urllib3.PoolManager(**options)  # type: ignore[arg-type]

    def have(self, peer: str, sha256: Digest, file: Digest) -> Have:
        """See `PeerLink`."""
        request = SignedRequest("GET", have_path(sha256, file))
        with self._get(peer, request, self.stall * _ANSWER_SHARE) as response:
            return Have.parse(response.read(MAX_HAVE_BYTES))

    @contextmanager
    def chunk(
        self, peer: str, sha256: Digest, chunk: ChunkId, wanted: ByteRange
    ) -> Iterator[BlobStream]:
        """See `PeerLink`."""
        request = SignedRequest("GET", chunk_path(sha256, chunk), wanted.header)
        with self._get(peer, request, self.stall) as response:
            got = parse_content_range(response.header("Content-Range") or "")
            if response.status != 206 or got is None or got[0] != wanted:
                raise RemoteRefused(f"peer {peer} answered with a different range than requested")
            stream: SocketStream = response.stream(len(wanted))
            try:
                yield stream
            finally:
                stream.close()

    @contextmanager
    def _get(self, peer: str, request: SignedRequest, timeout: float) -> Iterator[NetworkResponse]:
        origin = self._origin(peer)
        stamp = Stamp(self.own, peer, int(self.clock()), self.nonce())
        headers = {
            "Authorization": sign(self.keys()[0], request, stamp),
            "Accept-Encoding": "identity",
        }
        if request.range:
            headers["Range"] = request.range
        url = f"{origin.scheme}://{peer}{request.path}"
        with network_errors(origin):
            response = self._pools.request(
                "GET",
                url,
                headers=headers,
                timeout=urllib3.Timeout(connect=self.stall * _CONNECT_SHARE, read=timeout),
                retries=False,
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
        answer = NetworkResponse(response, Request("GET", url), TimeLimit(None))
        try:
            if response.status not in (200, 206):
                _refuse(peer, response.status, response.headers, answer.read(_ERROR_BYTES))
            yield answer
        except BaseException:
            # Closed, not returned to the pool: an unread rest of the body makes the connection unusable.
            response.close()
            raise
        finally:
            response.release_conn()

    def _origin(self, peer: str) -> WebOrigin:
        return WebOrigin.parse(f"{'https' if self.tls else 'http'}://{peer}")


def _refuse(peer: str, status: int, headers: Mapping[str, str], body: bytes) -> None:
    said = body.decode(errors="replace").strip()[:200]
    if status == 404:
        raise NotFound(f"peer {peer} doesn't have it")
    if status in (401, 403):
        raise AccessDenied(
            f"peer {peer} refuses: {said}", hint="Compare the nodes' peer keys and clocks."
        )
    if status == 503:
        raise RateLimited(f"peer {peer} is busy", retry_after=_seconds(headers))
    if status >= 500:
        raise Unreachable(f"peer {peer} answered {status}: {said}")
    raise RemoteRefused(f"peer {peer} answered {status}: {said}")


def _seconds(headers: Mapping[str, str]) -> float | None:
    # Bounded: a peer must not make this node wait for hours.
    try:
        return max(0.0, min(60.0, float(headers.get("Retry-After", ""))))
    except ValueError:
        return None
