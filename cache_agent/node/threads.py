"""The one place where asyncio meets the threads that do the work.

A coroutine that is cancelled (its client went away) cancels the pull it was following; a short call runs to its end in
a thread, since a store must not be left in the middle of a step.
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
    """Call in a loop, from any thread. A loop that was closed needs to know nothing any more."""
    try:
        loop.call_soon_threadsafe(tell)
    except RuntimeError:
        if not loop.is_closed():
            raise


def end_of(pull: Pull) -> asyncio.Event:
    """Set once a pull has ended; waiting for it takes no thread."""
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
    """Runs blocking calls for one event loop in threads of its own."""

    def __init__(self, threads: int = 8) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="control")

    def begin(self, function: Callable[[], T]) -> asyncio.Future[T]:
        """Run a blocking function in a thread: what it gives, once it ends."""
        return asyncio.get_running_loop().run_in_executor(self._executor, function)

    async def call(self, function: Callable[[], T]) -> T:
        """Run a blocking function in a thread and wait for it."""
        return await self.begin(function)

    async def follow(self, pull: Pull, interval: float) -> AsyncGenerator[PullSnapshot, None]:
        """Snapshots of a pull until it ends; cancels the pull when the consumer is cancelled or stops early."""
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
        """Wait for the calls under way."""
        self._executor.shutdown(wait=True)
