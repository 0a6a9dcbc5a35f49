"""Waits in the event loop until a pull has reserved its space, and until it ends. Cancelling also cancels the pull."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from cache_agent.fetch.pull import Pull
from cache_agent.node.threads import BlockingExecutor, call_soon, wait_event

_STEP_SECONDS: Final = 0.05


async def follow(pull: Pull, executor: BlockingExecutor, settled: Callable[[], None]) -> None:
    """Wait until a pull ends; its `result` has the outcome. Cancelled, it cancels the pull and still waits for its end.

    `settled` is called once the pull's space is reserved, at its first byte. Until then the free space isn't known.
    """
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    pull.when_ended(lambda: call_soon(loop, ended.set))
    try:
        await _first_byte(pull, ended)
        settled()
        await ended.wait()
    except asyncio.CancelledError:
        pull.cancel()
        # Its space is only free again once its threads have ended; the next pull is planned with it.
        await executor.call(pull.join)
        raise


async def _first_byte(pull: Pull, ended: asyncio.Event) -> None:
    while not ended.is_set():
        now = pull.snapshot()
        if now.done > now.resumed + now.reused:
            return
        await wait_event(ended, _STEP_SECONDS)
