"""The mirror's HTTP layer: routes, ranges, headers and error bodies of the distribution spec. Decides nothing."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractContextManager, aclosing, nullcontext
from functools import partial
from typing import Final

from aiohttp import web

from cache_agent.access.callers import NOBODY, Caller, caller_of_header
from cache_agent.api.errors import status_of
from cache_agent.fetch.values import ReadablePrefix
from cache_agent.node.threads import BlockingExecutor
from cache_agent.servers.mirror.content import CachedManifest, Content, Layer, RelayedBlob
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
from modelimage.errors import AccessDenied, InvalidInput, NotFound, WeightyardError
from modelimage.ranges import ByteRange
from modelimage.recipe import FileSlice, Literal

_VERSION: Final = {"Docker-Distribution-Api-Version": "registry/2.0"}
# Retry-After, in seconds.
_SLOW_DOWN: Final = "5"


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
            return _error(400, "UNAUTHORIZED", error.message)
        return await self._answer(request, wanted, caller)

    async def _answer(
        self, request: web.Request, wanted: MirrorRequest, caller: Caller
    ) -> web.StreamResponse:
        try:
            content = await self._executor.call(lambda: self._service.content(wanted, caller))
            return await self._send(request, content)
        except AccessDenied as error:
            return await self._refuse(wanted, caller, error)
        except NotFound as error:
            code = "MANIFEST_UNKNOWN" if wanted.kind is RequestKind.MANIFEST else "BLOB_UNKNOWN"
            return _error(404, code, error.message)
        except WeightyardError as error:
            answer = _error(status_of(error), "UNAVAILABLE", error.message)
            if error.retry:
                answer.headers["Retry-After"] = _SLOW_DOWN
            return answer

    async def _refuse(
        self, wanted: MirrorRequest, caller: Caller, error: AccessDenied
    ) -> web.Response:
        """Anonymous callers get upstream's challenge. Others get a 404, so that the runtime goes upstream itself."""
        offered = None
        if caller == NOBODY:
            offered = await self._executor.call(lambda: self._challenge(wanted))
        if offered is None:
            return _error(404, "NAME_UNKNOWN", error.message)
        answer = _error(401, "UNAUTHORIZED", error.message)
        answer.headers["WWW-Authenticate"] = offered
        return answer

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


def _error(status: int, code: str, message: str) -> web.Response:
    body = {"errors": [{"code": code, "message": message}]}
    return web.json_response(body, status=status, headers=_VERSION, dumps=json.dumps)
