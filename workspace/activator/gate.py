"""A bounded queue in front of servers that may not be running yet; full or timed out, it rejects requests.

Independent of HTTP. Once a server is ready, all waiting requests proceed immediately: the server's own queue is the
better one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from modelimage.errors import Busy, TimedOut


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """`capacity` requests may wait, each for `timeout` seconds; servers are probed every `interval` seconds."""

    capacity: int = 512
    timeout: float = 600.0
    interval: float = 0.5
    retry_after: int = 10


class RequestQueue:
    """Lets requests pass while `upstream` returns the address of a ready server."""

    def __init__(self, upstream: Callable[[], Awaitable[str | None]], limits: QueueLimits) -> None:
        self._upstream = upstream
        self.limits = limits
        self._found: asyncio.Future[str] | None = None
        self._asking: asyncio.Task[None] | None = None
        self.waiting = 0

    @asynccontextmanager
    async def enter(self) -> AsyncIterator[str]:
        """Waits for a server and yields its address. Raises Busy when the queue is full, TimedOut when none became
        ready.
        """
        if self.waiting >= self.limits.capacity:
            raise Busy(f"{self.waiting} requests are already waiting", hint="Try again later.")
        self.waiting += 1
        try:
            address = await self._wait()
        finally:
            self.waiting -= 1
        # Not counted as waiting from here on: the server has a queue of its own.
        yield address

    async def _wait(self) -> str:
        address = await self._upstream()
        if address is not None:
            return address
        if self._asking is None or self._asking.done():
            self._found = asyncio.get_running_loop().create_future()
            # One for all that wait: hundreds of requests must not each probe a server that is starting.
            self._asking = asyncio.create_task(self._ask(self._found))
        assert self._found is not None  # noqa: S101 - made together with the task
        # Shielded: one client's timeout or disconnect must not cancel the future that all others
        # await.
        try:
            async with asyncio.timeout(self.limits.timeout):
                return await asyncio.shield(self._found)
        except TimeoutError as error:
            raise TimedOut(
                f"no server became ready within {self.limits.timeout:g} s",
                hint="Look at the Workspace's conditions: kubectl describe workspace.",
            ) from error

    async def _ask(self, found: asyncio.Future[str]) -> None:
        """Probes on behalf of all waiting requests, until a server is ready or no request waits."""
        while self.waiting:
            # Not at once: `_wait` has just asked.
            await asyncio.sleep(self.limits.interval)
            address = await self._upstream()
            if address is not None:
                found.set_result(address)
                return
        # Cancelled rather than left pending: the next request then starts a new probe task and
        # future.
        found.cancel()

    async def close(self) -> None:
        """Stops probing. Requests that still wait get CancelledError."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
