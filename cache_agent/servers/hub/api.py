"""The Hub endpoint's HTTP layer: the headers and error codes that huggingface_hub reads. Decides nothing."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager, aclosing
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, quote

from aiohttp import web

from cache_agent.access.callers import NOBODY, Caller, caller_of_header
from cache_agent.api.errors import status_of
from cache_agent.node.threads import BlockingExecutor
from cache_agent.servers.hub.hub_client import Declined
from cache_agent.servers.hub.routes import (
    HubAddress,
    NoName,
    RepoRequest,
    parse_hub_address,
)
from cache_agent.servers.hub.service import Fill, HubContent, HubService
from cache_agent.servers.sender import (
    FilePiece,
    Piece,
    answer_of,
    deliver,
    each,
    following,
    relay,
)
from modelimage.errors import (
    AccessDenied,
    DigestMismatch,
    InvalidInput,
    NotFound,
    RateLimited,
    WeightyardError,
)
from modelimage.ranges import ByteRange

_MAX_BODY: Final = 1 << 20
# Shorter ranges are relayed from the Hub instead of starting a download of the whole file.
_WORTH_KEEPING: Final = 8 << 20
_TRUE: Final = frozenset({"1", "true"})


class HubApi:
    """Serves one node's Hub endpoint. Read-only."""

    def __init__(self, service: HubService, executor: BlockingExecutor) -> None:
        self._service, self._executor = service, executor

    def application(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(client_max_size=_MAX_BODY)
        app.router.add_route("*", "/{path:.*}", self._handle)
        return app

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        try:
            address = parse_hub_address(request.rel_url.raw_path)
        except InvalidInput as error:
            # With a code huggingface_hub shows the message, also where it hides other failures of a HEAD.
            code = error.code if isinstance(error, NoName) else ""
            return _error(404, code, ". ".join(filter(None, (error.message, error.hint))))
        asks = ("POST",) if address.view is RepoRequest.PATHS else ("GET", "HEAD")
        if request.method not in asks:
            refused = _error(405, "", "this endpoint is read-only")
            refused.headers["Allow"] = ", ".join(asks)
            return refused
        try:
            caller = caller_of_header(request.headers.get("Authorization"))
        except InvalidInput as error:
            return _error(401, "", error.message)
        return await self._answer(request, address, caller)

    async def _answer(
        self, request: web.Request, address: HubAddress, caller: Caller
    ) -> web.StreamResponse:
        try:
            if address.view in (RepoRequest.FILE, RepoRequest.RAW):
                content = await self._executor.call(lambda: self._service.file(address, caller))
                return await self._send(request, address, content)
            return await self._describe(request, address, caller)
        except WeightyardError as error:
            return _refusal(error, caller)

    async def _describe(
        self, request: web.Request, address: HubAddress, caller: Caller
    ) -> web.Response:
        # Read first: a malformed request costs the Hub nothing.
        paths = await _paths(request) if address.view is RepoRequest.PATHS else []
        listing = await self._executor.call(lambda: self._service.listing(address, caller))
        commit = {"X-Repo-Commit": listing.commit}
        document: Any = listing.entries_of(paths)
        if address.view is RepoRequest.INFO:
            expand = [*request.query.getall("expand", ()), *request.query.getall("expand[]", ())]
            document = listing.info(blobs=_flag(request, "blobs"), expand=expand)
        if address.view is RepoRequest.TREE:
            document = listing.tree(address.path, recursive=_flag(request, "recursive"))
            if document is None:
                message = f"{address.path} is not in {listing.repo}"
                return _error(404, "EntryNotFound", message, listing.commit)
        return web.json_response(document, headers=commit)

    async def _send(
        self, request: web.Request, address: HubAddress, content: HubContent
    ) -> web.StreamResponse:
        file = content.file
        headers = {"X-Repo-Commit": content.commit, "Content-Type": "application/octet-stream"}
        size, etag = file.size, file.etag
        if address.view is RepoRequest.RAW:
            headers["Content-Type"] = "text/plain; charset=utf-8"
            size, etag = len(file.pointer) or size, file.oid
        else:
            kind = "attachment" if _flag(request, "download") else "inline"
            headers["Content-Disposition"] = content_disposition(kind, file.path)
            if file.sha256:
                linked = {"X-Linked-Size": str(size), "X-Linked-Etag": f'"{etag}"'}
                headers.update(linked)
        answer, wanted = answer_of(request, size, f'"{etag}"', headers)
        if wanted is not None:
            await deliver(request, answer, self._pieces(content, wanted), self._held(content))
        return answer

    def _held(self, content: HubContent) -> AbstractContextManager[None]:
        return self._service.store.files.hold(content.held)

    def _pieces(self, content: HubContent, wanted: ByteRange) -> AsyncGenerator[Piece, None]:
        match content.body:
            case Path() as path:
                return each([FilePiece(path, wanted)])
            case bytes() as data:
                return each([data[wanted.start : wanted.stop]])
            case Fill() as fill:
                # Clients read a safetensors header alone: that must not download gigabytes.
                if len(wanted) < min(content.file.size, _WORTH_KEEPING):
                    return relay(self._executor, fill.stream(wanted))
                return self._through_the_cache(fill, wanted)
            case stream:
                return relay(self._executor, stream(wanted))

    async def _through_the_cache(
        self, fill: Fill, wanted: ByteRange
    ) -> AsyncGenerator[Piece, None]:
        """Yield a file while it is downloaded into the cache; relay it from the Hub if the node can't keep it."""
        position = wanted.start
        try:
            follow = await self._executor.call(fill.begin)
            pieces = following(self._executor, follow, wanted.start, wanted.stop)
            async with aclosing(pieces):
                async for piece in pieces:
                    yield piece
                    position = piece.wanted.stop if isinstance(piece, FilePiece) else position
        except DigestMismatch:
            # The Hub's bytes are wrong, so relaying them would pass on the damage.
            raise
        except WeightyardError:
            # For example no space. The log has the pull's error; the client gets the rest from the Hub.
            # From `position` on, because the bytes before it were sent.
            rest = relay(self._executor, fill.stream(ByteRange(position, wanted.stop)))
            async with aclosing(rest):
                async for piece in rest:
                    yield piece


async def _paths(request: web.Request) -> list[str]:
    """The paths of a paths-info request, sent as a form or as JSON. Raises InvalidInput."""
    body = await request.read()
    try:
        document: Any = parse_qs(body.decode())
        if request.content_type == "application/json":
            document = json.loads(body)
        return [str(path) for path in document.get("paths", [])]
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise InvalidInput("malformed request: no paths") from error


def _flag(request: web.Request, name: str) -> bool:
    return request.query.get(name, "").lower() in _TRUE


def content_disposition(kind: str, path: str) -> str:
    """The header's value for a file, by its name without directories (RFC 6266): escaped, and in ASCII beside it."""
    name = path.rsplit("/", 1)[-1]
    plain = re.sub(r'[^ -~]|["\\%]', "_", name)
    return f"{kind}; filename*=UTF-8''{quote(name, safe='')}; filename=\"{plain}\";"


def _refusal(error: WeightyardError, caller: Caller) -> web.Response:
    match error:
        case Declined():
            return _error(error.status, error.code, error.message, error.commit)
        case AccessDenied() | NotFound():
            # As the Hub does: 401 asks anonymous callers to log in; 404 hides private repositories from the others.
            return _error(401 if caller == NOBODY else 404, "RepoNotFound", error.message)
        case RateLimited():
            limited = _error(429, "", error.message)
            limited.headers["Retry-After"] = str(int(error.retry_after or 5))
            return limited
        case _:
            return _error(status_of(error), "", error.message)


def _error(status: int, code: str, message: str, commit: str = "") -> web.Response:
    headers = {
        "X-Error-Message": " ".join(message.split())[:500].encode("ascii", "replace").decode()
    }
    if code:
        headers["X-Error-Code"] = code
    if commit:
        headers["X-Repo-Commit"] = commit
    return web.json_response({"error": message}, status=status, headers=headers)
