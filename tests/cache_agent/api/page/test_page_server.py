"""The page over HTTP: its files and their headers, its stream, and a reader that stops reading."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files

import aiohttp
import pytest
from aiohttp import web

from cache_agent.api.page.feed import MOST_READERS, Feed
from cache_agent.api.page.page_server import PageServer, PageTimes
from cache_agent.api.page.view import View
from tests.servers.process import until

LIMIT_BYTES = 200_000
FOLDER = files("cache_agent.api.page") / "files"
NAMES = sorted(each.name for each in FOLDER.iterdir())


async def no_nodes() -> View:
    return {"about": {"": {"kind": "node", "name": "here"}}}


@asynccontextmanager
async def served(page: PageServer) -> AsyncIterator[str]:
    app = web.Application()
    app.add_routes(page.routes())
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with page.looking():
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def get(path: str) -> tuple[int, aiohttp.typedefs.LooseHeaders, bytes]:
    async def main() -> tuple[int, aiohttp.typedefs.LooseHeaders, bytes]:
        async with (
            served(PageServer(no_nodes)) as url,
            aiohttp.ClientSession() as session,
            session.get(url + path) as answer,
        ):
            return answer.status, dict(answer.headers), await answer.read()

    return asyncio.run(main())


@pytest.mark.parametrize("name", NAMES)
def test_every_file_is_served_under_a_strict_policy(name: str) -> None:
    status, headers, body = get(f"/page/{name}")

    assert status == 200
    assert body == (FOLDER / name).read_bytes()
    assert isinstance(headers, dict)
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "Set-Cookie" not in headers


@pytest.mark.parametrize("path", ["/page", "/page/"])
def test_the_page_is_found_with_and_without_a_slash(path: str) -> None:
    status, _, body = get(path)

    assert status == 200
    assert body.startswith(b"<!doctype html>")


@pytest.mark.parametrize(
    "path", ["/page/../server.py", "/page/%2e%2e%2fserver.py", "/page/server.py", "/page/x"]
)
def test_nothing_else_is_served(path: str) -> None:
    assert get(path)[0] == 404


def test_the_files_are_small_and_need_nothing_from_elsewhere() -> None:
    texts = {name: (FOLDER / name).read_text() for name in NAMES}

    assert sum(len(text.encode()) for text in texts.values()) < LIMIT_BYTES
    for name, text in texts.items():
        found = [
            each for each in re.findall(r"https?://[^\s\"')]+", text) if "www.w3.org" not in each
        ]
        assert not found, name


def test_text_is_never_taken_for_markup() -> None:
    """The policy forbids these too; here they are found before a browser is."""
    for name in NAMES:
        text = (FOLDER / name).read_text()
        for way in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "style=",
            "onclick=",
        ):
            assert way not in text, f"{way} in {name}"


def test_a_stream_begins_with_a_snapshot_and_beats_while_nothing_changes() -> None:
    async def scenario() -> None:
        page = PageServer(no_nodes, times=PageTimes(beat=0.01))
        async with (
            served(page) as url,
            aiohttp.ClientSession() as session,
            session.get(f"{url}/page/events") as answer,
        ):
            assert answer.content_type == "text/event-stream"
            assert answer.headers["Cache-Control"] == "no-store"
            read = b""
            while b"event: snapshot" not in read or not read.endswith(b": \n\n"):
                read += await answer.content.readany()
            assert b'"name":"here"' in read

    asyncio.run(scenario())


def test_a_stream_ends_after_its_time_so_that_its_reader_is_checked_again() -> None:
    async def scenario() -> None:
        page = PageServer(no_nodes, times=PageTimes(beat=0.01, longest=0.05))
        async with (
            served(page) as url,
            aiohttp.ClientSession() as session,
            session.get(f"{url}/page/events") as answer,
        ):
            assert b"event: snapshot" in await answer.read()

    asyncio.run(scenario())


def test_no_other_method_opens_the_stream() -> None:
    """aiohttp answers HEAD as GET unless it is told not to, and sends a stream's body all the same."""

    async def main() -> list[int]:
        async with served(PageServer(no_nodes)) as url, aiohttp.ClientSession() as session:
            found = []
            for method in ("HEAD", "POST", "OPTIONS"):
                async with session.request(method, f"{url}/page/events") as answer:
                    found.append(answer.status)
            return found

    assert asyncio.run(main()) == [404, 405, 405]


def test_one_reader_too_many_is_told_when_to_come_again() -> None:
    async def scenario() -> None:
        page = PageServer(no_nodes, feed=Feed(no_nodes, most_readers=1))
        async with (
            served(page) as url,
            aiohttp.ClientSession() as session,
            session.get(f"{url}/page/events") as first,
        ):
            await first.content.readany()
            async with session.get(f"{url}/page/events") as second:
                assert second.status == 503
                assert int(second.headers["Retry-After"]) > 0
                assert "already" in (await second.json())["error"]

    asyncio.run(scenario())


async def never_reading(port: int, count: int) -> list[socket.socket]:
    """Connections that ask for the events and read nothing, with small buffers of their own."""
    found = []
    for _ in range(count):
        each = socket.socket()
        each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        each.connect(("127.0.0.1", port))
        each.sendall(b"GET /page/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        found.append(each)
        await asyncio.sleep(0)
    return found


class Growing:
    """A large view that changes with each look. `page` serves it, looking as often as it can."""

    def __init__(
        self, *, changes: bool, numbers: int = 1_000_000, times: PageTimes | None = None
    ) -> None:
        self.count = 0
        self._numbers = numbers
        self._changes = changes
        feed = Feed(self, sleep=self._quickly)
        self.page = PageServer(self, feed=feed, times=times or PageTimes())

    async def __call__(self) -> View:
        self.count += 1
        number = self.count if self._changes else 0
        # More than what a kernel's buffers take.
        return {"nodes": {"a": {"why": f"{number:09}" * self._numbers}}}

    async def _quickly(self, _: float) -> None:
        await asyncio.sleep(0 if self._changes else 0.01)

    @property
    def readers(self) -> int:
        return len(self.page._feed._readers)


@pytest.mark.parametrize("changes", [True, False], ids=["changing", "at rest"])
def test_a_reader_that_stops_reading_loses_its_connection(changes: bool) -> None:
    """Also where nothing changes, so that no event would find their queues full."""

    async def scenario() -> None:
        view = Growing(changes=changes, times=PageTimes(beat=0.01, stalled=0.05))
        async with served(view.page) as url:
            (reader,) = await never_reading(int(url.rpartition(":")[2]), 1)
            # It is looked only while somebody reads.
            await until(lambda: view.count > 0 and view.readers == 0, what="the reader's end")
            reader.close()

    asyncio.run(scenario())


def test_two_hundred_readers_that_read_nothing_take_little_memory() -> None:
    async def scenario() -> None:
        view = Growing(changes=False)
        app = web.Application()
        app.add_routes(view.page.routes())
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.01)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=256).start()
        async with view.page.looking():
            sockets = await never_reading(runner.addresses[0][1], 200)
            await until(
                lambda: view.readers == MOST_READERS, what="as many readers as there may be"
            )
            await until(
                lambda: runner.server is not None and len(runner.server.connections) == 200,
                what="all",
            )
            assert runner.server is not None
            transports = [each.transport for each in runner.server.connections]
            # Their snapshot is one and the same; of its megabytes each has a piece in its own buffer.
            waiting = [each.get_write_buffer_size() for each in transports if each is not None]
            assert max(waiting) < 200_000
            assert view.readers == MOST_READERS
            for each in sockets:
                each.close()
        await runner.cleanup()

    asyncio.run(scenario())


def test_a_storm_of_readers_that_come_again_gets_what_each_missed() -> None:
    async def scenario() -> None:
        view = Growing(changes=True, numbers=100)
        feed = view.page._feed
        with feed.reading("") as reader:
            await feed.look()
            first = await reader.next()
        assert first is not None
        last = first.split(b"id: ")[1].split(b"\n")[0].decode()
        await feed.look()
        for _ in range(200):
            with feed.reading(last) as reader:
                event = await reader.next()
            assert event is not None
            # The same bytes for all: written as JSON once.
            assert event is feed._events[-1].data

    asyncio.run(scenario())
