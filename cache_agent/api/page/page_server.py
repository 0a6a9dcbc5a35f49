"""Serves the page: its files, which tell nothing, and its feed as server-sent events, which have to be guarded.

All addresses are relative, so that the page works below any prefix. A browser may load nothing from elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

from aiohttp import web

from cache_agent.api.page.feed import Feed, Reader
from cache_agent.api.page.view import View
from modelimage.errors import RateLimited

PREFIX: Final = "/page/"
EVENTS: Final = "/page/events"
# Seconds. A browser that hears nothing for three beats comes again.
_BEAT_SECONDS: Final = 15.0
# Then a reader comes again, and is asked for its token: one that was revoked doesn't read for ever.
_LONGEST_SECONDS: Final = 600.0
# A reader that takes nothing for so long is gone, whether its connection says so or not.
_STALLED_SECONDS: Final = 30.0
# What is written at once: of a snapshot of megabytes no more than this waits in the buffers of a slow reader.
_PIECE_BYTES: Final = 64 << 10
_MOST_ID: Final = 64
_FILES: Final = {
    "index.html": "text/html",
    "page.css": "text/css",
    "page.js": "text/javascript",
    "feed.js": "text/javascript",
    "dom.js": "text/javascript",
    "words.js": "text/javascript",
    "map.js": "text/javascript",
    "panels.js": "text/javascript",
    "why.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}
# Without a Cross-Origin-Opener-Policy: for it a browser starts another process, 100 ms before the first paint. A window
# that opened the page can do nothing with it: it hears no messages, has no frames, and shows nothing to other origins.
HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
        "trusted-types 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_COMMENT: Final = b": \n\n"


@dataclass(frozen=True, slots=True)
class PageTimes:
    """Seconds: between an idle stream's comments, of the longest stream, and that a reader may take for a piece."""

    beat: float = _BEAT_SECONDS
    longest: float = _LONGEST_SECONDS
    stalled: float = _STALLED_SECONDS


class PageServer:
    """The page's routes. `run` looks for as long as the routes are served."""

    def __init__(
        self, look: Callable[[], Awaitable[View]], *, feed: Feed | None = None,
        times: PageTimes = PageTimes(),
    ) -> None:  # fmt: skip
        self._feed = feed or Feed(look)
        self._times = times
        folder = files(__package__) / "files"
        self._files = {name: (folder / name).read_bytes() for name in _FILES}

    def routes(self) -> list[web.RouteDef]:
        """The routes, for an application that guards `EVENTS`."""
        return [
            web.get("/page", self._to_page),
            web.get(PREFIX, self._file),
            # Without HEAD, for which aiohttp would send the events as well.
            web.get(EVENTS, self._events, allow_head=False),
            web.get(PREFIX + "{name}", self._file),
        ]

    @asynccontextmanager
    async def looking(self) -> AsyncIterator[None]:
        """Looks while somebody reads, until left."""
        task = asyncio.create_task(self._feed.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _to_page(self, request: web.Request) -> web.Response:
        raise web.HTTPFound("page/", headers=HEADERS)

    async def _file(self, request: web.Request) -> web.Response:
        name = request.match_info.get("name", "index.html")
        body = self._files.get(name)
        if body is None:
            raise web.HTTPNotFound(headers=HEADERS)
        # Asked for again each time: the files belong to the version of the program that answers.
        headers = {**HEADERS, "Cache-Control": "no-cache"}
        return web.Response(body=body, content_type=_FILES[name], charset="utf-8", headers=headers)

    async def _events(self, request: web.Request) -> web.StreamResponse:
        last_id = request.headers.get("Last-Event-ID", "")[:_MOST_ID]
        transport = request.transport

        def drop() -> None:
            # What it was sent already isn't taken, so the stream can't be ended in order.
            if transport is not None:
                transport.abort()

        headers = {**HEADERS, "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        try:
            with self._feed.reading(last_id, drop) as reader:
                answer = web.StreamResponse(headers=headers)
                answer.content_type = "text/event-stream"
                answer.charset = "utf-8"
                await answer.prepare(request)
                # A browser that goes away is the usual end of a stream.
                with suppress(ConnectionError):
                    await self._send(answer, reader, drop)
                return answer
        except RateLimited as error:
            wait = {"Retry-After": f"{error.retry_after or 1:.0f}"}
            text = f"{error.message}. {error.hint}"
            return web.json_response({"error": text}, status=503, headers={**HEADERS, **wait})

    async def _send(
        self, answer: web.StreamResponse, reader: Reader, drop: Callable[[], None]
    ) -> None:
        """Sends events until the reader has read for long, is dropped, or takes nothing any more."""
        try:
            await self._write(answer, _COMMENT)
            async with aclosing(self._until_late(reader.next)) as events:
                async for event in events:
                    await self._write(answer, event)
            async with asyncio.timeout(self._times.stalled):
                await answer.write_eof()
        except TimeoutError:
            drop()

    async def _write(self, answer: web.StreamResponse, event: bytes) -> None:
        for start in range(0, len(event), _PIECE_BYTES):
            async with asyncio.timeout(self._times.stalled):
                await answer.write(event[start : start + _PIECE_BYTES])

    async def _until_late(
        self, following: Callable[[], Awaitable[bytes | None]]
    ) -> AsyncGenerator[bytes]:
        """Events and, while there are none, comments, until the reader is dropped or has read for long."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._times.longest
        while loop.time() < end:
            try:
                async with asyncio.timeout(min(self._times.beat, end - loop.time())):
                    event = await following()
            except TimeoutError:
                event = _COMMENT
            if event is None:
                return
            yield event
