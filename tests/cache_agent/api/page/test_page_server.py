"""The page over HTTP: its files and their headers, its stream, and a reader that stops reading."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files

import aiohttp
import pytest
from aiohttp import web

from cache_agent.api.page.feed import Feed
from cache_agent.api.page.page_server import PageServer, PageTimes
from cache_agent.api.page.panels import View
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


def test_a_reader_that_stops_reading_loses_its_connection() -> None:
    async def scenario() -> None:
        count = 0

        async def ever_larger() -> View:
            nonlocal count
            count += 1
            return {"nodes": {"a": {"why": f"{count}" * 200_000}}}

        async def quickly(_: float) -> None:
            await asyncio.sleep(0)

        page = PageServer(ever_larger, feed=Feed(ever_larger, sleep=quickly))
        async with served(page) as url:
            port = int(url.rpartition(":")[2])
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
            writer.write(b"GET /page/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            # The client's own reader pauses at its limit; what comes afterwards stays in the server.
            await until(
                lambda: (
                    writer.transport.is_closing() or reader.exception() is not None or _gone(page)
                ),
                what="end",
            )
            writer.close()

    def _gone(page: PageServer) -> bool:
        return not page._feed._readers and page._feed._number > 0

    asyncio.run(scenario())
