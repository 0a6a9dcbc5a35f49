"""A server that behaves like vLLM under load: some requests run, the rest wait, and its metrics say how many.

Run as a program: `python -m tests.workspace.activator.engine --port P --slots N --seconds S --boot B`. SIGTERM lets
what runs finish, as the pod's preStop hook does.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from aiohttp import web


@dataclass
class Engine:
    """`slots` requests run at once for `seconds` each; healthy `boot` seconds after the start."""

    slots: int = 2
    seconds: float = 0.2
    boot: float = 0.0
    running: int = 0
    waiting: int = 0
    started: float = field(default_factory=time.monotonic)
    bodies: list[bytes] = field(default_factory=list)
    first_token_sent: asyncio.Event = field(default_factory=asyncio.Event)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_post("/v1/completions", self._complete)
        app.router.add_post("/stream", self._stream)
        app.router.add_route("*", "/echo", self._echo)
        app.cleanup_ctx.append(self._slots)
        return app

    async def _slots(self, _: web.Application) -> AsyncIterator[None]:
        self._free = asyncio.Semaphore(self.slots)
        yield

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if time.monotonic() >= self.started + self.boot else 503)

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(
            text=f"vllm:num_requests_running {self.running}\n"
            f"vllm:num_requests_waiting {self.waiting}\n"
            f"vllm:kv_cache_usage_perc {0.8 * self.running / self.slots}\n"
        )

    async def _complete(self, request: web.Request) -> web.Response:
        self.bodies.append(await request.read())
        self.waiting += 1
        try:
            await self._free.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        try:
            await asyncio.sleep(self.seconds)
        finally:
            self.running -= 1
            self._free.release()
        return web.json_response({"choices": [{"text": " Paris"}]}, headers={"x-engine": "yes"})

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        """Two events; the second only once somebody has seen the first."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: one\n\n")
        self.first_token_sent.set()
        await self.go_on.wait()
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    async def _echo(self, request: web.Request) -> web.Response:
        return web.json_response(
            {
                "method": request.method,
                "target": request.raw_path,
                "headers": {k.lower(): v for k, v in request.headers.items()},
                "body": (await request.read()).decode(),
            },
            status=418,
        )


async def main() -> None:
    """Serve until SIGTERM, then finish what runs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=0.2)
    parser.add_argument("--boot", type=float, default=0.0)
    given = parser.parse_args()
    engine = Engine(given.slots, given.seconds, given.boot)
    runner = web.AppRunner(engine.app(), access_log=None, shutdown_timeout=30)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", given.port).start()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main())
