"""The boundary between asyncio and the threads that do the work.

A cancelled coroutine (its client disconnected) cancels the pull that it follows. A short call always runs to its end in
its thread, since a store must not be left in the middle of a step.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from cache_agent.fetch.pull import Pull
from cache_agent.fetch.values import PullSnapshot

T = TypeVar("T")


def call_soon(loop: asyncio.AbstractEventLoop, tell: Callable[[], object]) -> None:
    """Call `tell` in a loop, from any thread; does nothing when the loop is closed."""
    try:
        loop.call_soon_threadsafe(tell)
    except RuntimeError:
        # The loop may close at any time: only the error shows it.
        if not loop.is_closed():
            raise


def end_of(pull: Pull) -> asyncio.Event:
    """An event set once a pull has ended; waiting for it blocks no thread."""
    ended, loop = asyncio.Event(), asyncio.get_running_loop()
    pull.when_ended(lambda: call_soon(loop, ended.set))
    return ended


async def wait_event(event: asyncio.Event, seconds: float | None) -> bool:
    """Wait for an event, at most `seconds` (None: without limit); whether it is set.

    Not `asyncio.wait_for`, which before Python 3.12 loses a cancellation that comes in the moment the event is set: the
    task then runs on, and whoever waits for its end waits for ever.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()


class BlockingExecutor:
    """Runs blocking calls of one event loop in its own threads."""

    def __init__(self, threads: int = 8) -> None:
        # Not the loop's default pool: name look-ups go there, and would wait behind a store's calls.
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="control")

    def begin(self, function: Callable[[], T]) -> asyncio.Future[T]:
        """Start a blocking function in a thread; returns the future of its result."""
        return asyncio.get_running_loop().run_in_executor(self._executor, function)

    async def call(self, function: Callable[[], T]) -> T:
        """Run a blocking function in a thread and wait for it."""
        return await self.begin(function)

    async def follow(self, pull: Pull, interval: float) -> AsyncGenerator[PullSnapshot, None]:
        """Yield snapshots of a pull until it ends; cancels it when the consumer is cancelled or stops early."""
        ended = end_of(pull)
        try:
            while not ended.is_set():
                yield pull.snapshot()
                await wait_event(ended, interval)
            yield pull.snapshot()
        finally:
            if not ended.is_set():
                pull.cancel()

    def close(self) -> None:
        """Wait for running calls."""
        self._executor.shutdown(wait=True)
