"""Connections that send no request, however many, take no place of others for long."""

from __future__ import annotations

import asyncio
import gc

from tests.servers.process import until
from workspace.activator.connection_guard import ConnectionGuard
from workspace.activator.gate import QueueLimits
from workspace.activator.proxy import Activator, ProxyOptions, serve


def test_connections_are_limited_and_silent_ones_end() -> None:
    limits = ConnectionGuard(most=3, seconds=0.3)

    async def ask(port: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(b"GET /activator/metrics HTTP/1.0\r\n\r\n")
            return await reader.read(12)
        except ConnectionError:
            return b""
        finally:
            writer.close()

    async def main() -> None:
        options = ProxyOptions(lambda: ("http://127.0.0.1:1",), limits=QueueLimits(capacity=4))
        found: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        serving = asyncio.create_task(
            serve(
                Activator(options),
                host="127.0.0.1",
                port=0,
                ready=found.set_result,
                guard=limits,
            )
        )
        port = await found
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(6)]
        ends = [asyncio.create_task(reader.read()) for reader, _ in silent]
        # Half of them at once, the others when their time is over.
        assert not any(
            isinstance(end, bytes) and end
            for end in await asyncio.gather(*ends, return_exceptions=True)
        )
        assert await ask(port) == b"HTTP/1.0 200"
        for _, writer in silent:
            writer.close()
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)

    asyncio.run(main())


def test_nothing_is_kept_of_connections_that_were_closed() -> None:
    guard = ConnectionGuard(seconds=0.3)

    async def main() -> None:
        options = ProxyOptions(lambda: ("http://127.0.0.1:1",), limits=QueueLimits(capacity=4))
        found: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        serving = asyncio.create_task(
            serve(Activator(options), host="127.0.0.1", port=0, ready=found.set_result, guard=guard)
        )
        port = await found
        for request in (b"", b"GET /activator/metrics HTTP/1.1\r\nHost: a\r\n\r\n"):
            for _ in range(20):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(request)
                if request:
                    await reader.readuntil(b"\r\n\r\n")
                writer.close()

        def forgotten() -> bool:
            gc.collect()
            return guard.watched() == 0

        await until(forgotten, what="nothing that is kept")
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)

    asyncio.run(main())
