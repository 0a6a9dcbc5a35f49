"""A client of the Hub that uses the caller's own token: access checks, revisions, listings and file bytes.

Blocking. The token is sent to the Hub only, never to the target of a redirect.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, urljoin

from cache_agent.access.callers import Caller
from cache_agent.access.decide import UpstreamAnswer
from modelimage import canonical
from modelimage.errors import (
    AccessDenied,
    InvalidInput,
    NotFound,
    RemoteRefused,
    Unreachable,
    WeightyardError,
)
from modelimage.hub import file_url
from modelimage.ranges import ByteRange, parse_content_range
from modelimage.registry.credentials import Credential, RegistryToken
from modelimage.registry.exchange import Request, Response, Sender, WebOrigin
from modelimage.repository import BlobStream
from modelimage.source_uris import is_commit

_MAX_JSON: Final = 8 << 20
_MAX_PAGES: Final = 1000
_MAX_ENTRIES: Final = 100_000
_NEXT = re.compile(r'<([^>]*)>\s*;[^,]*\brel="?next"?')


class Declined(RemoteRefused):
    """A refusal by the Hub, with its status and `X-Error-Code`, to pass on to the client.

    `commit`: the revision's commit, if it is known; clients remember then that the commit has no such file.
    """

    def __init__(self, status: int, code: str, message: str, commit: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.commit = status, code, commit


@dataclass(frozen=True, slots=True)
class HubUpstream:
    """One Hub. `sender` follows redirects."""

    endpoint: str
    sender: Sender

    def file_url(self, repo: str, revision: str, path: str) -> str:
        return file_url(self.endpoint, repo, revision, path)

    def ask_for_file(
        self, repo: str, revision: str, path: str, credential: Credential | None
    ) -> str:
        """Check that a caller may read a file; return the ETag of its bytes. Raises Declined, Unreachable."""
        url = self.file_url(repo, revision, path)
        response = self._send(Request("HEAD", url), credential)
        etag = response.header("ETag") or ""
        response.discard()
        return etag.removeprefix("W/").strip('"')

    def describe(self, repo: str, revision: str, caller: Caller) -> dict[str, Any]:
        """What the Hub says of a model; `sha` is the commit. Raises Declined, Unreachable, RemoteRefused."""
        url = f"{self.endpoint}/api/models/{repo}/revision/{quote(revision, safe='')}"
        described = self._json(url, caller)[0]
        commit = described.get("sha") if isinstance(described, dict) else None
        if not isinstance(commit, str) or not is_commit(commit):
            raise RemoteRefused(f"{self.endpoint} names no commit of {repo}")
        return dict(described)

    def tree(self, repo: str, commit: str, caller: Caller) -> list[Any]:
        """All entries of a repository at a commit. Raises Declined, Unreachable, RemoteRefused."""
        url: str | None = f"{self.endpoint}/api/models/{repo}/tree/{commit}?recursive=true"
        entries: list[Any] = []
        # Bounded, because a server could link to next pages for ever.
        for _ in range(_MAX_PAGES):
            if url is None:
                return entries
            page, url = self._json(url, caller)
            if not isinstance(page, list):
                raise RemoteRefused(f"{self.endpoint} lists {repo} in no list")
            entries += page
            # All of them are in memory, for each caller that lists this repository.
            if len(entries) > _MAX_ENTRIES:
                raise RemoteRefused(f"{repo} has more than {_MAX_ENTRIES} files and directories")
        raise RemoteRefused(f"{self.endpoint} lists {repo} endlessly")

    def read(self, repo: str, commit: str, path: str, caller: Caller, limit: int) -> bytes:
        """Read a small file. Raises Declined, Unreachable, RemoteRefused above `limit` bytes."""
        url = self.file_url(repo, commit, path)
        return self._send(Request("GET", url), caller.credential).read(limit)

    @contextlib.contextmanager
    def stream(
        self, repo: str, commit: str, path: str, caller: Caller, wanted: ByteRange
    ) -> Iterator[BlobStream]:
        """Stream a range of a file. Raises Declined, Unreachable, RemoteRefused."""
        request = Request("GET", self.file_url(repo, commit, path), {"Range": wanted.header})
        response = self._send(request, caller.credential)
        got = parse_content_range(response.header("Content-Range") or "")
        # A server that ignores Range would put the file's beginning into the middle of it.
        if response.status != 206 or got is None or got[0] != wanted:
            response.discard()
            raise RemoteRefused(f"{self.endpoint} answered with a different range than requested")
        with contextlib.closing(response.stream(len(wanted))) as opened:
            yield opened

    def _json(self, url: str, caller: Caller) -> tuple[Any, str | None]:
        response = self._send(Request("GET", url), caller.credential)
        link = _NEXT.search(response.header("Link") or "")
        try:
            data = response.read(_MAX_JSON)
            document = json.loads(data, parse_constant=_finite, parse_float=_finite)
            canonical.check_halves(document, data)
        except (ValueError, RecursionError) as error:
            raise RemoteRefused(f"{self.endpoint} didn't answer with JSON") from error
        return document, self._following(url, link[1]) if link else None

    def _following(self, url: str, link: str) -> str:
        try:
            following = urljoin(url, link)
            there = WebOrigin.parse(following)
        except (ValueError, InvalidInput) as error:
            raise RemoteRefused(f"{self.endpoint} links to {link[:200]!r}") from error
        # The next page is requested with the caller's token, which no other host may get.
        if there != WebOrigin.parse(self.endpoint):
            raise RemoteRefused(f"{self.endpoint} links to another host")
        return following

    def _send(self, request: Request, credential: Credential | None) -> Response:
        # The Hub knows Bearer tokens only; a password that is meant for a registry must not be sent to it.
        token = credential.token if isinstance(credential, RegistryToken) else None
        header = f"Bearer {token}" if token else None
        response = self.sender.send(request.with_header("Authorization", header))
        if response.status in (200, 206):
            return response
        code = response.header("X-Error-Code") or ""
        message = response.header("X-Error-Message") or f"the Hub answered {response.status}"
        commit = response.header("X-Repo-Commit") or ""
        response.discard()
        # A Hub that fails says nothing of the request: what is kept may answer it.
        if response.status >= 500:
            raise Unreachable(message)
        known = commit if is_commit(commit) else ""
        raise Declined(response.status, code, message, known)


def _finite(text: str) -> float:
    # Python reads NaN, Infinity and 1e999; as JSON they can't be written again.
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"not a number of JSON: {text[:40]}")
    return number


def answer_of(error: WeightyardError | None) -> UpstreamAnswer:
    """The authorizer's form of the Hub's response. Re-raises errors that say nothing about access."""
    # A 5xx or a rate limit isn't a refusal: it leaves a lapsed permission in force, like an outage.
    match error:
        case None:
            return UpstreamAnswer.ALLOWED
        case Declined(status=401 | 403) | AccessDenied():
            return UpstreamAnswer.REFUSED
        case Declined(status=404) | NotFound():
            return UpstreamAnswer.ABSENT
        case Unreachable() | Declined():
            return UpstreamAnswer.UNREACHABLE
        case _:
            raise error
