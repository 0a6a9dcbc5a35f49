"""A Hugging Face Hub on loopback: what huggingface_hub uses of its HTTP API to describe and download repositories.

Repositories are plain directories; a dataset's name begins with `datasets/`. Weight files are LFS files: their resolve
address redirects to a content server on another port (as the Hub's CDN is another host) with a signed URL that expires.
Access rules and error codes follow the Hub: `X-Error-Code` RepoNotFound, RevisionNotFound, EntryNotFound, GatedRepo.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self, cast
from urllib.parse import parse_qs, unquote, urlsplit

from tests.servers.httpserver import Handler, LoopbackServer
from tests.servers.hub_files import HubFile, describe, parse_range, tree_entries, walk

_REVISION = r"(?P<revision>refs/(?:pr|convert)/[^/]+|[^/]+)"
_API = re.compile(
    r"/api/(?:models/|(?=datasets/))(?P<repo>(?:datasets/)?[^/]+/[^/]+)"
    rf"(?:/(?P<view>revision|tree|paths-info)/{_REVISION}(?P<path>/.*)?)?$"
)
_RESOLVE = re.compile(
    rf"/(?P<repo>(?:datasets/)?[^/]+/[^/]+)/(?P<view>resolve|raw)/{_REVISION}/(?P<path>.+)$"
)


@dataclass(frozen=True)
class HubRequest:
    """One answered request; `sent` is bytes of the answer's body, `authorized` whether it carried credentials."""

    method: str
    path: str
    status: int
    sent: int
    range: str | None
    authorized: bool


@dataclass(frozen=True)
class _Repository:
    revisions: Mapping[str, str]  # name -> commit
    commits: Mapping[str, Mapping[str, HubFile]]
    private: bool
    gated: bool
    readers: frozenset[str]  # tokens
    # Of a model's description, beside its files.
    described: Mapping[str, Any] = field(default_factory=dict)


class _HubHandler(Handler):
    @property
    def _owner(self) -> Any:
        return cast("Any", self.server).owner

    def _token(self) -> str | None:
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        return token if scheme == "Bearer" else None

    def answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self._note(status, 0 if self.command == "HEAD" else len(body))
        super().answer(status, body, headers)

    def _note(self, status: int, sent: int) -> None:
        self._owner.requests.append(
            HubRequest(
                method=self.command,
                path=self.path,
                status=status,
                sent=sent,
                range=self.headers.get("Range"),
                authorized="Authorization" in self.headers,
            )
        )

    def _error(self, status: int, code: str, message: str, **headers: str) -> None:
        named = {"X-Error-Code": code, "X-Error-Message": message, **headers}
        self.answer(status, json.dumps({"error": message}).encode(), named)

    def _json(self, value: object, **headers: str) -> None:
        body = json.dumps(value).encode()
        self.answer(200, body, {"Content-Type": "application/json", **headers})

    def _file(self, file: HubFile, headers: dict[str, str]) -> None:
        """Send a file or the one range of it that was asked for."""
        if self.headers.get("If-None-Match") == f'"{file.etag}"':
            self.answer(304, b"", {"ETag": f'"{file.etag}"', **headers})
            return
        stated = self.headers.get("Range") if self.command == "GET" else None
        wanted = parse_range(stated, file.size)
        if wanted is None:
            self.answer(416, b"", {"Content-Range": f"bytes */{file.size}"})
            return
        partial = stated is not None
        status = HTTPStatus.PARTIAL_CONTENT if partial else HTTPStatus.OK
        self._note(status, 0 if self.command == "HEAD" else len(wanted))
        self.send_response(status)
        if partial:
            self.send_header("Content-Range", f"bytes {wanted.start}-{wanted.stop - 1}/{file.size}")
        described = {
            "Content-Length": str(len(wanted)),
            "Accept-Ranges": "bytes",
            "ETag": f'"{file.etag}"',
        }
        for name, value in {**described, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.flush()
        with file.source.open("rb") as source:
            self.connection.sendfile(source, wanted.start, len(wanted))


class _ApiHandler(_HubHandler):
    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        if match := _API.fullmatch(url.path):
            self._api(match, query)
        elif match := _RESOLVE.fullmatch(url.path):
            self._resolve(match)
        else:
            self._error(404, "NotFound", "no such page")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        match = _API.fullmatch(urlsplit(self.path).path)
        if match is None or match["view"] != "paths-info":
            self._error(404, "NotFound", "no such page")
            return
        asked = parse_qs(body.decode())
        if self.headers.get("Content-Type", "").startswith("application/json"):
            asked = json.loads(body)
        found = self._commit(match)
        if found:
            everything = list(tree_entries(found[2], "", recursive=True))
            self._json([each for each in everything if each["path"] in asked.get("paths", [])])

    def _repository(self, name: str) -> _Repository | None:
        """The repository, if this client may know of it; else the error is answered."""
        repository = self._owner.repositories.get(name)
        token = self._token()
        if token is not None and token not in self._owner.tokens:
            self._error(401, "", "Invalid credentials in Authorization header")
        elif repository is None or (repository.private and token not in repository.readers):
            self._error(401 if token is None else 404, "RepoNotFound", "Repository not found")
        else:
            return cast("_Repository", repository)
        return None

    def _commit(
        self, match: re.Match[str]
    ) -> tuple[_Repository, str, Mapping[str, HubFile]] | None:
        repository = self._repository(match["repo"])
        if repository is None:
            return None
        revision = unquote(match["revision"] or "main")
        commit = repository.revisions.get(revision, revision)
        if commit not in repository.commits:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return repository, commit, repository.commits[commit]

    def _api(self, match: re.Match[str], query: dict[str, str]) -> None:
        found = self._commit(match)
        if found is None:
            return
        repository, commit, files = found
        if match["view"] == "tree":
            self._tree(files, unquote(match["path"] or "").strip("/"), query)
            return
        blobs = query.get("blobs", "").lower() in {"true", "1"} and not self._owner.names_only
        self._json(
            {
                "id": match["repo"].removeprefix("datasets/"),
                "modelId": match["repo"],
                "sha": commit,
                "private": repository.private,
                "gated": "manual" if repository.gated else False,
                "disabled": False,
                "tags": [],
                "downloads": 0,
                "likes": 0,
                **repository.described,
                "siblings": [file.sibling(blobs=blobs) for file in files.values()],
            }
        )

    def _tree(self, files: Mapping[str, HubFile], under: str, query: dict[str, str]) -> None:
        entries = list(
            tree_entries(
                files, under, recursive=query.get("recursive", "").lower() in {"true", "1"}
            )
        )
        if under and not entries:
            self._error(404, "EntryNotFound", f"{under} does not exist")
            return
        start, size = int(query.get("cursor", "0")), self._owner.page_size
        headers = {}
        if start + size < len(entries):
            base = urlsplit(self.path).path
            following = f"{self._owner.url}{base}?recursive={query.get('recursive', 'false')}&cursor={start + size}"
            headers["Link"] = f'<{following}>; rel="next"'
        self._json(entries[start : start + size], **headers)

    def _resolve(self, match: re.Match[str]) -> None:
        found = self._commit(match)
        if found is None:
            return
        repository, commit, files = found
        named = {"X-Repo-Commit": commit}
        if repository.gated and self._token() not in repository.readers:
            status = 401 if self._token() is None else 403
            self._error(
                status, "GatedRepo", f"Access to model {match['repo']} is restricted", **named
            )
            return
        file = files.get(unquote(match["path"]))
        if file is None:
            self._error(404, "EntryNotFound", "Entry not found", **named)
        elif match["view"] == "raw":
            content = file.pointer() or file.source.read_bytes()
            self.answer(
                200, content, {**named, "ETag": f'"{file.blob_id}"', "Content-Type": "text/plain"}
            )
        elif file.sha256 is None:
            inline = f'inline; filename="{file.path.rsplit("/", 1)[-1]}";'
            self._file(file, {**named, "Content-Disposition": inline})
        else:
            linked = {"X-Linked-Size": str(file.size), "X-Linked-Etag": f'"{file.sha256}"'}
            location = self._owner.cdn.signed_url(file)
            if (match["repo"], file.path) in self._owner.cdn.missing:
                self._owner.cdn.signatures.clear()
            self.answer(
                302, b"", {**named, **linked, "ETag": f'"{file.blob_id}"', "Location": location}
            )


class _CdnHandler(_HubHandler):
    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        file, expires = self._owner.signatures.get(query.get("signature", ""), (None, 0.0))
        if file is None or url.path != f"/{file.sha256}" or expires < time.monotonic():
            self.answer(
                403,
                b"<Error><Code>AccessDenied</Code></Error>",
                {"Content-Type": "application/xml"},
            )
        elif "Authorization" in self.headers:
            # as S3 does with a signed URL and a header beside it
            self.answer(400, b"<Error><Code>InvalidArgument</Code></Error>")
        elif self.command == "HEAD":
            # Of the bytes themselves: what a listing says may be something else.
            with file.source.open("rb") as source:
                etag = hashlib.file_digest(source, "sha256").hexdigest()
            self._file(file, {"ETag": f'"{etag}"'})
        else:
            self._file(file, {})


class ContentServer(LoopbackServer):
    """Where LFS files are downloaded from: signed URLs only, which live `url_lifetime` seconds."""

    HANDLER = _CdnHandler

    def __init__(self) -> None:
        self.requests: list[HubRequest] = []
        self.signatures: dict[str, tuple[HubFile, float]] = {}
        self.url_lifetime = 3600.0
        # Repositories and paths whose bytes were never uploaded.
        self.missing: set[tuple[str, str]] = set()

    def signed_url(self, file: HubFile) -> str:
        """A new URL for `file`."""
        signature = secrets.token_urlsafe(12)
        self.signatures[signature] = (file, time.monotonic() + self.url_lifetime)
        return f"{self.url}/{file.sha256}?signature={signature}"


class Hub(LoopbackServer):
    """The Hub. `url` is what HF_ENDPOINT takes; `requests` and `cdn.requests` list what was answered.

    `page_size` is how many entries one page of a tree listing has; tests make it small to see paging. With `names_only`
    a model's description lists no sizes, as some mirrors do.
    """

    HANDLER = _ApiHandler

    def __init__(self, *, page_size: int = 1000, names_only: bool = False) -> None:
        self.names_only = names_only
        self.page_size = page_size
        self.requests: list[HubRequest] = []
        self.repositories: dict[str, _Repository] = {}
        self.tokens: set[str] = set()
        self.cdn = ContentServer()

    def __enter__(self) -> Self:
        self.cdn.__enter__()
        return super().__enter__()

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self.cdn.__exit__()

    def token(self) -> str:
        """A new user's token; it opens only the repositories that it's named a reader of."""
        token = f"hf_{secrets.token_hex(8)}"
        self.tokens.add(token)
        return token

    def add(
        self,
        name: str,
        directory: Path,
        *,
        revision: str = "main",
        private: bool = False,
        gated: bool = False,
        readers: tuple[str, ...] = (),
        described: Mapping[str, Any] | None = None,
    ) -> str:
        """Publish `directory` as a commit of `name` that `revision` points to; return the commit.

        The files are served from where they are. Earlier commits stay reachable by their ids. `described`: members of
        the model's description, such as `tags`.
        """
        files = {file.path: file for file in map(describe, *walk(directory))}
        listing = json.dumps([[path, file.etag] for path, file in files.items()])
        commit = hashlib.sha1(listing.encode(), usedforsecurity=False).hexdigest()
        before = self.repositories.get(name)
        self.repositories[name] = _Repository(
            revisions={**(before.revisions if before else {}), revision: commit},
            commits={**(before.commits if before else {}), commit: files},
            private=private,
            gated=gated,
            readers=frozenset(readers),
            described=described if described is not None else before.described if before else {},
        )
        return commit
