"""How long a server puts up with who says nothing."""

from __future__ import annotations

import asyncio
import gc
import socket
from contextlib import AsyncExitStack

from aiohttp import web

from cache_agent.net.listen_addresses import Address
from cache_agent.servers.listener import IdleTimeout, serve

IDLE_SECONDS = 0.2


def test_the_silent_are_sent_away_and_the_slow_answer_is_not_cut() -> None:
    async def main() -> list[bytes]:
        begun = asyncio.Event()

        async def slow(request: web.Request) -> web.Response:
            begun.set()
            await asyncio.sleep(4 * IDLE_SECONDS)
            return web.Response(text="done")

        async def ask(at: Address) -> bytes:
            """A busy machine may take it for silent before its request is seen: then it asks again."""
            while True:
                said = await _all(at, b"GET / HTTP/1.0\r\n\r\n")
                if begun.is_set():
                    return said

        app = web.Application()
        app.router.add_get("/", slow)
        async with AsyncExitStack() as stack:
            at = await serve(stack, app, Address("127.0.0.1", 0), idle=IdleTimeout(IDLE_SECONDS))
            unfinished = b"GET / HTTP/1.1\r\nHost: x\r\n"
            return await asyncio.gather(_all(at, b""), _all(at, unfinished), ask(at))

    silent, unfinished, answered = asyncio.run(main())
    assert silent == unfinished == b""
    assert answered.endswith(b"done")


def test_who_takes_nothing_of_an_answer_holds_nothing_for_long() -> None:
    async def main() -> bool:
        ended = asyncio.Event()

        async def endless(request: web.Request) -> web.StreamResponse:
            answer = web.StreamResponse()
            try:
                await answer.prepare(request)
                while True:
                    await answer.write(bytes(1 << 20))
            finally:
                ended.set()

        app = web.Application()
        app.router.add_get("/", endless)
        async with AsyncExitStack() as stack:
            idle = IdleTimeout(untaken=IDLE_SECONDS)
            at = await serve(stack, app, Address("127.0.0.1", 0), idle=idle)
            with socket.create_connection((at.host, at.port)) as client:
                client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                return await ended.wait()

    assert asyncio.run(main())


def test_nothing_stays_of_connections_that_were_closed() -> None:
    async def main() -> int:
        async def answer(request: web.Request) -> web.Response:
            return web.Response()

        app = web.Application()
        app.router.add_get("/", answer)
        idle = IdleTimeout()
        async with AsyncExitStack() as stack:
            at = await serve(stack, app, Address("127.0.0.1", 0), idle=idle)
            for _ in range(50):
                assert await _all(at, b"GET / HTTP/1.0\r\n\r\n")
            # The last one's end may not have been seen yet.
            assert await _all(at, b"GET / HTTP/1.0\r\n\r\n")
            gc.collect()
            return idle.watched()

    assert asyncio.run(main()) <= 1


async def _all(at: Address, said: bytes) -> bytes:
    """Everything that is answered until the connection ends."""
    reader, writer = await asyncio.open_connection(at.host, at.port)
    writer.write(said)
    try:
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()
