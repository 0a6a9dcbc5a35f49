"""The hub tier: reads files as published on the Hub, at the record's commit.

The Hub has only an unquantized variant's files; the others are NotFound, and the pull uses another source.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import urlsplit

from cache_agent.sources.source import ChunkRange, Tier
from cache_agent.sources.streams import chained
from modelimage import hub
from modelimage.errors import RemoteRefused
from modelimage.ranges import parse_content_range
from modelimage.record import Record
from modelimage.registry.destinations import Destinations
from modelimage.registry.exchange import Request, Response, Sender
from modelimage.registry.network_options import Timeouts, TlsOptions
from modelimage.registry.redirect import FollowingRedirects
from modelimage.registry.retry import parse_retry_after
from modelimage.registry.transport import Network
from modelimage.repository import BlobStream


def _sender(destinations: Destinations | None = None) -> Sender:
    # Without retries: the engine retries, and can use another source.
    timeouts = Timeouts(connect=5, stall=60)
    return FollowingRedirects(Network(TlsOptions(), timeouts, destinations=destinations))


@dataclass(frozen=True)
class HubSource:
    """One Hub repository at one commit. `token` is sent to the Hub only, never to a host it redirects to."""

    record: Record
    repository: str
    endpoint: str = hub.DEFAULT_ENDPOINT
    token: str | None = None
    sender: Sender = field(default_factory=_sender)
    tier: Tier = Tier.HUB
    authorizes: bool = False

    @classmethod
    def of(
        cls,
        record: Record,
        endpoint: str,
        token: str | None,
        destinations: Destinations | None = None,
    ) -> HubSource | None:
        """The source of an unquantized record that was built from a Hub repository; None for any other."""
        found = hub.HubSnapshot.of(record)
        if found is None or record.quantization:
            return None
        return cls(record, found.repository, endpoint.rstrip("/"), token, _sender(destinations))

    @property
    def name(self) -> str:
        return f"{urlsplit(self.endpoint).netloc}/{self.repository}"

    def open(self, pieces: Sequence[ChunkRange]) -> AbstractContextManager[BlobStream]:
        """See `Source.open`."""
        return chained(pieces, self._open)

    @contextmanager
    def _open(self, piece: ChunkRange) -> Iterator[BlobStream]:
        response = self._get(piece)
        got = parse_content_range(response.header("Content-Range") or "")
        if response.status != 206 or got is None or got[0] != piece.range:
            response.discard()
            raise RemoteRefused(f"{self.name} answered with a different range than requested")
        with contextlib.closing(response.stream(len(piece.range))) as stream:
            yield stream

    def _get(self, piece: ChunkRange) -> Response:
        url = hub.file_url(self.endpoint, self.repository, self.record.revision, piece.file.path)
        authorization = f"Bearer {self.token}" if self.token else None
        request = Request("GET", url, {"Range": piece.range.header})
        response = self.sender.send(request.with_header("Authorization", authorization))
        if response.status < 300:
            return response
        after = parse_retry_after(response.header("Retry-After"), datetime.now(UTC))
        response.discard()
        raise hub.refusal(f"{piece.file.path!r} of {self.name}", response.status, after)
