"""The mirror's HTTP layer: routes, ranges, headers and error bodies of the distribution spec. Decides nothing."""

from __future__ import annotations

import json
import math
import re
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, aclosing, nullcontext
from functools import partial
from typing import Final
from urllib.parse import urlencode

from aiohttp import web

from cache_agent.access.callers import NOBODY, Caller, caller_of_header
from cache_agent.api.errors import status_of
from cache_agent.fetch.values import ReadablePrefix
from cache_agent.node.threads import BlockingExecutor
from cache_agent.servers.mirror.content import CachedManifest, Content, Layer, RelayedBlob
from cache_agent.servers.mirror.discovery import query_of
from cache_agent.servers.mirror.mirror_routes import (
    BadAddress,
    MirrorRequest,
    RequestKind,
    parse_address,
)
from cache_agent.servers.mirror.service import MirrorService
from cache_agent.servers.sender import (
    FilePiece,
    Piece,
    answer_of,
    deliver,
    each,
    following,
    relay,
)
from modelimage.digest import Digest
from modelimage.errors import (
    AccessDenied,
    InvalidInput,
    NotFound,
    RateLimited,
    WeightyardError,
)
from modelimage.ranges import ByteRange
from modelimage.recipe import FileSlice, Literal

_VERSION: Final = {"Docker-Distribution-Api-Version": "registry/2.0"}
# For credentials that can't be read. Whether they are right, each registry says.
_SCHEME: Final = 'Basic realm="weightyard"'
_NOT_TAKEN: Final = re.compile(r"(?:^|;)\s*q\s*=\s*0(?:\.0*)?\s*(?:;|$)")
# Retry-After, in seconds.
_SLOW_DOWN: Final = 5
# The specification's codes of a 404. A list of referrers that isn't there is one that the registry can't make.
_UNKNOWN: Final[Mapping[RequestKind, str]] = {
    RequestKind.MANIFEST: "MANIFEST_UNKNOWN",
    RequestKind.BLOB: "BLOB_UNKNOWN",
    RequestKind.TAGS: "NAME_UNKNOWN",
    RequestKind.REFERRERS: "UNSUPPORTED",
}


class MirrorApi:
    """Serves one node's mirror. Read-only: methods other than GET and HEAD get a 405."""

    def __init__(self, service: MirrorService, executor: BlockingExecutor) -> None:
        self._service, self._executor = service, executor

    def application(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        return app

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if request.method not in ("GET", "HEAD"):
            refused = _error(405, "UNSUPPORTED", "this mirror is read-only: push to the registry")
            refused.headers["Allow"] = "GET, HEAD"
            return refused
        try:
            wanted = parse_address(request.rel_url.raw_path, request.query.get("ns"))
            if wanted is None:
                return web.json_response({}, headers=_VERSION)
            caller = caller_of_header(request.headers.get("Authorization"))
        except BadAddress as error:
            return _error(error.status, error.code, error.message)
        except InvalidInput as error:
            return _unauthorized(error.message, _SCHEME)
        return await self._answer(request, wanted, caller)

    async def _answer(
        self, request: web.Request, wanted: MirrorRequest, caller: Caller
    ) -> web.StreamResponse:
        try:
            if wanted.kind.is_list:
                return await self._list(request, wanted, caller)
            content = await self._executor.call(lambda: self._service.content(wanted, caller))
            if wanted.kind is RequestKind.MANIFEST and not accepts(request, content.media_type):
                # As registries answer: the runtime asks the registry, which may convert.
                message = f"the manifest is of the type {content.media_type}"
                return _error(404, "MANIFEST_UNKNOWN", message)
            return await self._send(request, content)
        except AccessDenied as error:
            return await self._refuse(wanted, caller, error)
        except WeightyardError as error:
            return _failure(wanted.kind, error)

    async def _list(
        self, request: web.Request, wanted: MirrorRequest, caller: Caller
    ) -> web.Response:
        query = query_of(wanted.kind, request.rel_url.raw_query_string)
        found = await self._executor.call(lambda: self._service.listing(wanted, caller, query))
        headers = {**_VERSION, "Content-Type": found.media_type}
        if found.filters:
            headers["OCI-Filters-Applied"] = found.filters
        if found.following:
            namespace = urlencode({"ns": request.query["ns"]}) if "ns" in request.query else ""
            following = "&".join(filter(None, (found.following, namespace)))
            # By the mirror: the next page needs no other address and no other credentials.
            headers["Link"] = f'<{request.rel_url.raw_path}?{following}>; rel="next"'
        return web.Response(body=found.data, headers=headers)

    async def _refuse(
        self, wanted: MirrorRequest, caller: Caller, error: AccessDenied
    ) -> web.Response:
        """Anonymous callers get upstream's challenge. Others get a 404, so that the runtime goes upstream itself."""
        offered = None
        if caller == NOBODY:
            offered = await self._executor.call(lambda: self._challenge(wanted))
        if offered is None:
            return _error(404, "NAME_UNKNOWN", error.message)
        return _unauthorized(error.message, offered)

    def _challenge(self, wanted: MirrorRequest) -> str | None:
        try:
            return self._service.challenge(wanted)
        except WeightyardError:
            return None  # a 404, so the runtime goes upstream and gets the error from there

    async def _send(self, request: web.Request, content: Content) -> web.StreamResponse:
        headers = {
            **_VERSION,
            "Content-Type": content.media_type,
            "Docker-Content-Digest": str(content.digest),
        }
        answer, wanted = answer_of(request, content.size, f'"{content.digest}"', headers)
        if wanted is not None:
            await deliver(request, answer, self._pieces(content, wanted), self._held(content))
        return answer

    def _held(self, content: Content) -> AbstractContextManager[None]:
        """Protect the files of a response from eviction while it is sent."""
        if isinstance(content, Layer):
            return self._service.store.files.hold(content.files())
        return nullcontext()

    def _pieces(self, content: Content, wanted: ByteRange) -> AsyncGenerator[Piece, None]:
        match content:
            case CachedManifest():
                return each([content.data[wanted.start : wanted.stop]])
            case Layer(ready=ready):
                if ready is not None:
                    return self._as_they_arrive(content, wanted, ready)
                return each(self._stored(content, wanted))
            case RelayedBlob():
                return relay(self._executor, content.open(wanted))

    def _stored(self, layer: Layer, wanted: ByteRange) -> Iterator[Piece]:
        """Yield the pieces of a layer whose files are all in the store."""
        store = self._service.store
        for segment in layer.recipe.cut(wanted):
            match segment:
                case Literal(data):
                    yield data
                case FileSlice(file, start, stop):
                    yield FilePiece(store.files.path(file.digest), ByteRange(start, stop))

    async def _as_they_arrive(
        self, layer: Layer, wanted: ByteRange, ready: Callable[[Digest, int], ReadablePrefix | None]
    ) -> AsyncGenerator[Piece, None]:
        """Yield each chunk as soon as it is readable, so that the runtime sees progress during the pull."""
        for segment in layer.recipe.cut(wanted):
            match segment:
                case Literal(data):
                    yield data
                case FileSlice(file, start, stop):
                    follow = partial(ready, file.digest)
                    async with aclosing(following(self._executor, follow, start, stop)) as pieces:
                        async for piece in pieces:
                            yield piece


def _failure(kind: RequestKind, error: WeightyardError) -> web.Response:
    if isinstance(error, NotFound):
        return _error(404, _UNKNOWN[kind], error.message)
    seconds: float = _SLOW_DOWN
    answer = _error(status_of(error), "UNAVAILABLE", error.message)
    if isinstance(error, RateLimited):
        answer = _error(429, "TOOMANYREQUESTS", error.message)
        seconds = error.retry_after or seconds
    if error.retry:
        answer.headers["Retry-After"] = str(math.ceil(seconds))
    return answer


def accepts(request: web.Request, media_type: str) -> bool:
    """Whether a client takes this type (Accept; RFC 9110, section 12.5.1). A client that names no type takes all."""
    stated = ",".join(request.headers.getall("Accept", ()))
    ranges = (each.partition(";") for each in stated.split(",") if each.strip())
    taken = {kind.strip().lower() for kind, _, rest in ranges if not _NOT_TAKEN.search(rest)}
    kinds = {media_type.lower(), f"{media_type.partition('/')[0].lower()}/*", "*/*"}
    return not stated.strip() or bool(taken & kinds)


def _unauthorized(message: str, challenge: str) -> web.Response:
    answer = _error(401, "UNAUTHORIZED", message)
    answer.headers["WWW-Authenticate"] = challenge
    return answer


def _error(status: int, code: str, message: str) -> web.Response:
    body = {"errors": [{"code": code, "message": message}]}
    return web.json_response(body, status=status, headers=_VERSION, dumps=json.dumps)
