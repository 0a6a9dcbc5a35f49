"""The hub tier: reads files as published on the Hub, at the record's commit, through the Hub's `resolve` URLs.

The Hub has only an unquantized variant's files; the others are NotFound, and the pull uses another source.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote, urljoin, urlsplit

import urllib3

from cache_agent.sources.source import ChunkRange, Tier
from cache_agent.sources.streams import SLICE_BYTES, chained
from modelimage.errors import AccessDenied, NotFound, RateLimited, RemoteRefused, Unreachable
from modelimage.ranges import parse_content_range
from modelimage.record import Record
from modelimage.repository import BlobStream

DEFAULT_ENDPOINT: Final = "https://huggingface.co"
_SCHEME: Final = "hf://"
_MAX_REDIRECTS: Final = 5
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


class _HubStream:
    """A response's body as a stream."""

    def __init__(self, response: Any) -> None:
        self._response = response

    def readinto(self, buffer: memoryview, /) -> int:
        try:
            return int(self._response.readinto(buffer[:SLICE_BYTES]) or 0)
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise Unreachable(f"the hub broke off: {error}") from error

    def close(self) -> None:
        # Shutting the connection down ends a read pending in another thread.
        with suppress(RuntimeError, ValueError, OSError):  # it has ended
            self._response.shutdown()


@dataclass(frozen=True)
class HubSource:
    """One Hub repository at one commit. `token` is sent to the Hub only, never to a host it redirects to."""

    record: Record
    endpoint: str = DEFAULT_ENDPOINT
    token: str | None = None
    # No retries here: the engine retries, and can use another source.
    pool: urllib3.PoolManager = field(
        default_factory=lambda: urllib3.PoolManager(
            maxsize=16, retries=False, timeout=urllib3.Timeout(connect=5, read=60)
        )
    )
    tier: Tier = Tier.HUB
    authorizes: bool = False

    @classmethod
    def of(cls, record: Record, endpoint: str, token: str | None) -> HubSource | None:
        """The source of an unquantized record that was built from a Hub repository; None for any other."""
        if not record.source.startswith(_SCHEME) or not record.revision or record.quantization:
            return None
        return cls(record, endpoint.rstrip("/"), token)

    @property
    def name(self) -> str:
        return f"{urlsplit(self.endpoint).netloc}/{self._repository}"

    def open(self, pieces: Sequence[ChunkRange]) -> AbstractContextManager[BlobStream]:
        """See `Source.open`."""
        return chained(pieces, self._open)

    @property
    def _repository(self) -> str:
        return self.record.source.removeprefix(_SCHEME).split("@", maxsplit=1)[0]

    @contextmanager
    def _open(self, piece: ChunkRange) -> Iterator[BlobStream]:
        # `safe=""`: a revision with a slash must stay one path segment.
        path = quote(piece.file.path)
        url = f"{self.endpoint}/{self._repository}/resolve/{quote(self.record.revision, safe='')}/{path}"
        response = self._get(url, {"Range": piece.range.header, "Accept-Encoding": "identity"})
        try:
            got = parse_content_range(response.headers.get("Content-Range", ""))
            if response.status != 206 or got is None or got[0] != piece.range:
                raise RemoteRefused(f"{self.name} answered another range than was asked for")
            yield _HubStream(response)
        finally:
            # Closed, not returned to the pool: an unread rest of the body makes the connection unusable.
            response.close()

    def _get(self, url: str, headers: dict[str, str]) -> Any:
        hub = urlsplit(self.endpoint).netloc
        # Redirects are followed here, not by urllib3: the token must not reach the storage host behind the Hub.
        for _ in range(_MAX_REDIRECTS):
            own = dict(headers)
            if self.token and urlsplit(url).netloc == hub:
                own["Authorization"] = f"Bearer {self.token}"
            try:
                response = self.pool.request(
                    "GET", url, headers=own, preload_content=False, redirect=False
                )
            except (urllib3.exceptions.HTTPError, OSError) as error:
                raise Unreachable(f"{self.name} doesn't answer: {error}") from error
            if response.status not in _REDIRECTS:
                self._check(response)
                return response
            url = urljoin(url, response.headers.get("Location", ""))
            response.drain_conn()
            response.release_conn()
        raise RemoteRefused(f"{self.name} redirects without end")

    def _check(self, response: Any) -> None:
        status = int(response.status)
        if status < 300:
            return
        retry_after = response.headers.get("Retry-After", "")
        response.close()
        if status == 404:
            raise NotFound(f"{self.name} has no such file")
        if status in (401, 403):
            raise AccessDenied(f"{self.name} denies access", hint="Set HF_TOKEN.")
        if status in (429, 503):
            seconds = float(retry_after) if retry_after.isdigit() else None
            raise RateLimited(f"{self.name} asks to slow down", retry_after=seconds)
        if status >= 500:
            raise Unreachable(f"{self.name} answered {status}")
        raise RemoteRefused(f"{self.name} answered {status}")
