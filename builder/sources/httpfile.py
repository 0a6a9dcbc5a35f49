"""Reads a file on the Hub by its URL, from any position, resuming after broken connections. Nothing is stored."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from modelimage.errors import RemoteRefused, Unreachable
from modelimage.hub import refusal
from modelimage.ranges import ByteRange, parse_content_range
from modelimage.registry.connections import Connections
from modelimage.registry.exchange import Request, Response
from modelimage.registry.network_options import TlsOptions

_BUFFER_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class HttpFile:
    """`size` bytes at `url`. `headers` are sent only to its own origin, not to redirect targets."""

    url: str
    size: int
    connections: Connections
    headers: Mapping[str, str] = field(default_factory=dict)

    def read(self, start: int) -> Iterator[bytes]:
        """The bytes from `start` on. Raises NotFound, AccessDenied, RateLimited, RemoteRefused, Unreachable."""
        position, failures = start, 0
        while position < self.size:
            try:
                for piece in self._pieces(ByteRange(position, self.size)):
                    position, failures = position + len(piece), 0
                    yield piece
            except Unreachable:
                # Progress resets the count: a large file survives many interruptions, a dead server only a few.
                failures += 1
                if not self.connections.backoff.wait(failures):
                    raise

    def _pieces(self, wanted: ByteRange) -> Iterator[bytes]:
        # A range of a compressed answer would be one of other bytes (RFC 9110, section 14.2).
        headers = {**self.headers, "Range": wanted.header, "Accept-Encoding": "identity"}
        response = self.connections.sender(TlsOptions()).send(Request("GET", self.url, headers))
        self._check(response, wanted)
        buffer = memoryview(bytearray(_BUFFER_BYTES))
        with contextlib.closing(response.stream(len(wanted))) as stream:
            while count := stream.readinto(buffer):
                yield bytes(buffer[:count])

    def _check(self, response: Response, wanted: ByteRange) -> None:
        """Raise unless the response has the requested range."""
        # Some servers send a range of the whole file with 200; any other 200 has the wrong bytes.
        whole = wanted == ByteRange(0, self.size)
        found = parse_content_range(response.header("Content-Range") or "")
        if (response.status == 200 and whole) or (
            response.status == 206 and found == (wanted, self.size)
        ):
            return
        response.discard()
        if response.status in (200, 206):
            raise RemoteRefused(f"{self.url} answered with a different range than requested")
        raise refusal(self.url, response.status)
