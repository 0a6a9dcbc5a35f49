"""Blob uploads (distribution-spec, "Pushing blobs"): begin a session, send, ask how far it got, finish.

A session's newest Location carries the registry's state, so each answer's Location replaces the one before.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, urljoin

from modelimage.digest import Digest
from modelimage.errors import DigestMismatch, InvalidInput, RemoteRefused
from modelimage.registry import answers
from modelimage.registry.exchange import Body, Origin, Request, Response, Sender
from modelimage.repository import BlobContent

_RANGE = re.compile(r"(?:bytes=)?0-(\d{1,19})")
# A registry may copy or hash a finished upload before it answers.
_FINISH_PATIENCE: Final = 300.0

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Session:
    """An upload under way at `location`; the registry holds `offset` bytes; `minimum` is the least size of a chunk."""

    location: str
    offset: int = 0
    minimum: int = 0


def parse_offset(header: str | None) -> int:
    """How many bytes a Range header of an upload says are there. `0-0` also stands for none in a new session."""
    match = _RANGE.fullmatch(header.strip()) if header else None
    return int(match[1]) + 1 if match and int(match[1]) else 0


def with_digest(location: str, digest: Digest) -> str:
    """The URL that finishes an upload."""
    joiner = "&" if "?" in location else "?"
    return f"{location}{joiner}digest={quote(str(digest), safe='')}"


class Uploader:
    """Uploads to one repository. `uploads` is its `blobs/uploads/` URL, `scopes` what its tokens must cover."""

    def __init__(self, sender: Sender, uploads: str, scopes: frozenset[str]) -> None:
        self._sender = sender
        self._uploads = uploads
        self._scopes = scopes

    def begin(self) -> Session:
        """Open a session. Raises AccessDenied, NotFound, Unreachable, RemoteRefused."""
        response = self._sender.send(
            Request("POST", self._uploads, body=Body.of(b""), scopes=self._scopes)
        )
        if response.status != 202:
            raise answers.refusal(response, "the registry opens no upload")
        return self._session(response, self._uploads, offset=0)

    def ask(self, session: Session) -> Session | None:
        """The session as the registry sees it; None when it has forgotten it."""
        response = self._sender.send(Request("GET", session.location, scopes=self._scopes))
        if response.status == 404:
            response.discard()
            return None
        if response.status != 204:
            raise answers.refusal(response, "the registry tells nothing of an upload")
        offset = parse_offset(response.header("Range"))
        return self._session(response, session.location, offset=offset)

    def finish(self, session: Session, content: BlobContent, progress: Progress | None) -> None:
        """Send what is missing in one PUT. Raises DigestMismatch, Unreachable, RemoteRefused and so on."""
        size, start = content.descriptor.size, session.offset
        headers = {"Content-Type": "application/octet-stream"}
        if start:
            headers["Content-Range"] = f"{start}-{size - 1}"
        body = Body(size - start, lambda: counted(content, start, size, progress))
        response = self._sender.send(
            Request(
                "PUT",
                with_digest(session.location, content.descriptor.digest),
                headers,
                body,
                self._scopes,
                repeatable=False,
                patience=_FINISH_PATIENCE,
            )
        )
        if response.status not in (201, 204):
            raise answers.refusal(
                response, f"the registry refuses blob {content.descriptor.digest}"
            )
        response.discard()

    def _session(self, response: Response, base: str, *, offset: int) -> Session:
        location = response.header("Location")
        minimum = response.header("OCI-Chunk-Min-Length") or ""
        response.discard()
        url = upload_url(base, location) if location else base
        return Session(url, offset, int(minimum) if minimum.isdecimal() else 0)


def upload_url(base: str, location: str) -> str:
    """Where to send an upload. Raises RemoteRefused when that leaves encryption or is no URL."""
    try:
        url = urljoin(base, location)
        here, there = Origin.parse(base), Origin.parse(url)
    except (ValueError, InvalidInput) as error:
        raise RemoteRefused(f"the registry wants uploads sent to {location[:200]!r}") from error
    if here.encrypted and not there.encrypted:
        raise RemoteRefused(
            f"{here} wants uploads sent to {there}, which isn't encrypted",
            hint="Correct the registry's external URL, or have it answer with relative URLs.",
        )
    return url


def counted(
    content: BlobContent, start: int, stop: int, progress: Progress | None
) -> Iterator[bytes | memoryview]:
    """The content's bytes from `start` to `stop`, told to `progress`, which is told a negative count on a rewind.

    Raises DigestMismatch when the content is shorter or longer than its descriptor says.
    """
    sent = 0
    finished = False
    try:
        for buffer in content.read(start):
            view = memoryview(buffer).cast("B")[: stop - start - sent]
            if len(view) < len(buffer) and stop == content.descriptor.size:
                raise _changed(content)
            yield view
            sent += len(view)
            if progress:
                progress(len(view))
            if start + sent == stop and stop < content.descriptor.size:
                break
        if start + sent != stop:
            raise _changed(content)
        finished = True
    finally:
        if not finished and progress and sent:
            progress(-sent)


def _changed(content: BlobContent) -> DigestMismatch:
    return DigestMismatch(
        f"the content of blob {content.descriptor.digest} isn't {content.descriptor.size} bytes long",
        hint="A file changed while it was sent: build again.",
    )
