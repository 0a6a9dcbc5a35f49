"""The requests of a blob upload (distribution-spec, "Pushing blobs"), one method each.

A session's latest Location carries the registry's state, so each response's Location replaces the one before.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, urlencode, urljoin

from modelimage.digest import Digest
from modelimage.errors import DigestMismatch, InvalidInput, RemoteRefused, WeightyardError
from modelimage.registry import answers
from modelimage.registry.exchange import Body, Request, Response, Sender, WebOrigin
from modelimage.repository import BlobContent, StopRequested, StreamedContent

_RANGE = re.compile(r"(?:bytes=)?0-([0-9]{1,19})")
_OCTETS: Final = {"Content-Type": "application/octet-stream"}
# A registry may copy or hash the received bytes before it responds.
_RESPONSE_TIMEOUT: Final = 300.0
# Statuses that refuse a chunk as such, rather than temporarily or for lack of permission.
# ECR responds to a first chunk with 201, as if it were the whole blob.
_NO_CHUNKS: Final = frozenset({201, 400, 404, 405, 411, 413, 415, 416, 501})
# Statuses to a session query: the session has expired, or the registry doesn't support such queries.
_FORGOTTEN: Final = frozenset({400, 404, 405, 410, 416, 501})


@dataclass(frozen=True, slots=True)
class Session:
    """An open upload at `location`; the registry has `offset` bytes; `minimum` is the smallest size of a chunk."""

    location: str
    offset: int = 0
    minimum: int = 0


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A blob to send. `streamed`: its digest is known only after all of it was read; `label` is its name in errors."""

    label: str
    size: int
    read: Callable[[int], Iterator[memoryview | bytes]]
    digest: Callable[[], Digest]
    streamed: bool = False

    @classmethod
    def from_content(cls, content: BlobContent) -> Outgoing:
        known = content.descriptor
        return cls(str(known.digest), known.size, content.read, lambda: known.digest)

    @classmethod
    def from_streamed(cls, content: StreamedContent) -> Outgoing:
        return cls("being streamed", content.size, content.read, content.digest, streamed=True)


class Tally:
    """Reports to a progress callback how many bytes the registry has, and subtracts those to be sent again.

    While `deferring`, a callback's StopRequested is deferred to `check`, so that the current chunk isn't lost.
    """

    def __init__(self, progress: Callable[[int], None] | None) -> None:
        self._progress = progress
        self._reported = 0
        self._stop: StopRequested | None = None
        self.deferring = False

    def add(self, count: int) -> None:
        self._reported += count
        if self._progress is None or not count:
            return
        try:
            self._progress(count)
        except StopRequested as stop:
            if not self.deferring:
                raise
            self._stop = stop

    def reach(self, position: int) -> None:
        """Make the sum of all reported counts equal `position`."""
        self.add(position - self._reported)

    def check(self) -> None:
        """Raise the deferred StopRequested, if any."""
        if self._stop is not None:
            raise self._stop


class ChunkRefused(RemoteRefused):
    """The registry refuses a chunk in this session. `lost`: the session may merely have expired."""

    lost = False


def parse_offset(header: str | None) -> int:
    """The number of bytes according to an upload's Range header. `0-0` is also sent for an empty new session."""
    match = _RANGE.fullmatch(header.strip()) if header else None
    return int(match[1]) + 1 if match and int(match[1]) else 0


def with_digest(location: str, digest: Digest) -> str:
    """The URL that completes an upload."""
    # The location's own query carries the registry's state.
    joiner = "&" if "?" in location else "?"
    return f"{location}{joiner}digest={quote(str(digest), safe='')}"


class Uploader:
    """Uploads to one repository. `uploads` is its `blobs/uploads/` URL, `scopes` are those its tokens must cover."""

    def __init__(self, sender: Sender, uploads: str, scopes: frozenset[str]) -> None:
        self._sender = sender
        self._uploads = uploads
        self._scopes = scopes
        self._registry = WebOrigin.parse(uploads)

    def begin(self) -> Session:
        """Open a session. Raises AccessDenied, NotFound, Unreachable, RemoteRefused."""
        response = self._post(self._uploads, self._scopes)
        if response.status != 202:
            raise answers.refusal(response, "the registry starts no upload", self._registry)
        return self._session(response, self._uploads, offset=0)

    def mount(self, digest: Digest, source: str) -> Session | None:
        """Mount a blob from another repository. Returns None on success, else the session opened instead.

        Raises AccessDenied if the source may not be read.
        """
        url = f"{self._uploads}?{urlencode({'mount': str(digest), 'from': source})}"
        response = self._post(url, self._scopes | {f"repository:{source}:pull"})
        if response.status == 201:
            response.discard()
            return None
        # 202: the registry can't or won't mount, and has opened a session for the upload instead (distribution-spec).
        if response.status != 202:
            raise answers.refusal(
                response, f"the registry mounts nothing from {source}", self._registry
            )
        return self._session(response, self._uploads, offset=0)

    def ask(self, session: Session) -> Session | None:
        """The session's current state at the registry; None if it has expired."""
        response = self._sender.send(
            Request("GET", session.location, scopes=self._scopes, named_by=self._registry)
        )
        if response.status in _FORGOTTEN:
            response.discard()
            return None
        if response.status not in (202, 204):
            raise answers.refusal(
                response, "the registry doesn't report the state of an upload", self._registry
            )
        offset = parse_offset(response.header("Range"))
        return self._session(response, session.location, offset=offset, minimum=session.minimum)

    def append(
        self, session: Session, content: Outgoing, stop: int, tally: Tally, *, ranged: bool = True
    ) -> Session:
        """Send the bytes from the session's offset to `stop`. Raises ChunkRefused, Unreachable and so on.

        Without `ranged`, sends the single request of `docker push`, which registries without chunks also accept.
        """
        start = session.offset
        headers = dict(_OCTETS)
        if ranged or start:
            headers["Content-Range"] = f"{start}-{stop - 1}"
        response = self._send_bytes(
            "PATCH", session.location, headers, content, (start, stop), tally
        )
        accepted = {202, 204} if ranged else {201, 202, 204}
        if response.status in _NO_CHUNKS - accepted:
            error = answers.refusal(response, "the registry rejects a chunk", self._registry)
            refused = ChunkRefused(error.message, hint=error.hint)
            # 404 to a chunk means that the session has expired.
            refused.lost = response.status == 404
            raise refused from error
        if response.status not in accepted:
            raise answers.refusal(
                response, f"the registry rejects a part of blob {content.label}", self._registry
            )
        # The registry may have kept fewer bytes than were sent; its Range decides where the next chunk starts.
        held = parse_offset(response.header("Range")) or stop
        return self._session(response, session.location, offset=held, minimum=session.minimum)

    def finish(self, session: Session, content: Outgoing, tally: Tally) -> None:
        """Send missing bytes and complete the upload. Raises DigestMismatch, Unreachable, RemoteRefused and so on."""
        size, start = content.size, session.offset
        headers = dict(_OCTETS)
        if 0 < start < size:
            headers["Content-Range"] = f"{start}-{size - 1}"
        url = with_digest(session.location, content.digest())
        response = self._send_bytes("PUT", url, headers, content, (start, size), tally)
        if response.status not in (201, 204):
            raise answers.refusal(
                response, f"the registry rejects blob {content.label}", self._registry
            )
        response.discard()

    def _post(self, url: str, scopes: frozenset[str]) -> Response:
        return self._sender.send(Request("POST", url, body=Body.from_bytes(b""), scopes=scopes))

    def _send_bytes(
        self,
        method: str,
        url: str,
        headers: dict[str, str],
        content: Outgoing,
        part: tuple[int, int],
        tally: Tally,
    ) -> Response:
        start, stop = part
        body = Body(stop - start, lambda: content_bytes(content, start, stop, tally))
        # Never repeated blindly: the registry may have kept part of the body, so the offset must be queried first.
        return self._sender.send(
            Request(
                method,
                url,
                headers,
                body,
                self._scopes,
                repeatable=False,
                timeout=_RESPONSE_TIMEOUT,
                named_by=self._registry,
            )
        )

    def _session(self, response: Response, base: str, *, offset: int, minimum: int = 0) -> Session:
        """The session in a response. The minimum chunk size is stated only once, when the upload is opened."""
        location = response.header("Location")
        said = response.header("OCI-Chunk-Min-Length") or ""
        response.discard()
        url = upload_url(base, location) if location else base
        return Session(url, offset, int(said) if re.fullmatch("[0-9]{1,15}", said) else minimum)


def upload_url(base: str, location: str) -> str:
    """The URL for an upload. Raises RemoteRefused if it leaves encryption or is no URL."""
    try:
        url = urljoin(base, location)
        here, there = WebOrigin.parse(base), WebOrigin.parse(url)
    except (ValueError, InvalidInput) as error:
        raise RemoteRefused(f"the registry directs uploads to {location[:200]!r}") from error
    # The weights would follow, for anyone on the way to read and change.
    if here.encrypted and not there.encrypted:
        raise RemoteRefused(
            f"{here} directs uploads to {there}, which isn't encrypted",
            hint="Correct the registry's external URL, or configure it to answer with relative URLs.",
        )
    return url


def content_bytes(content: Outgoing, start: int, stop: int, tally: Tally) -> Iterator[memoryview]:
    """The content's bytes from `start` to `stop`, counted in `tally` after they were consumed.

    Raises DigestMismatch if the content is shorter or longer than stated.
    """
    position = start
    # A retry, for example after an expired token, starts again.
    tally.reach(start)
    if start == stop:
        return
    for buffer in content.read(start):
        view = memoryview(buffer).cast("B")
        if position + len(view) > content.size:
            raise content_changed(content)
        view = view[: stop - position]
        yield view
        position += len(view)
        tally.add(len(view))
        # At the content's own end, reading goes on: further bytes mean that the file has grown.
        if position == stop and stop < content.size:
            return
    if position != stop:
        raise content_changed(content)


def content_changed(content: Outgoing) -> WeightyardError:
    """The error for content whose length differs from its descriptor."""
    return DigestMismatch(
        f"the content of blob {content.label} isn't {content.size} bytes long",
        hint="A file changed while it was sent: build again.",
    )
