"""Worker tasks that take keys from a queue. Defines which errors are retried, and when."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final

from modelimage.errors import RateLimited, WeightyardError
from workspace.controller.queue import WorkQueue

Key = tuple[str, str]
Work = Callable[[Key], Awaitable[float | None]]  # returns the seconds until the next pass

logger = logging.getLogger(__name__)

_FIRST_RETRY: Final = 0.5
_LAST_RETRY: Final = 60.0


async def work(queue: WorkQueue[Key], once: Work, *, workers: int) -> None:
    """Runs `workers` tasks until cancelled. A failed key is retried with growing delays."""
    failures: Counter[Key] = Counter()
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(_work(queue, once, failures))
    finally:
        queue.close()


async def _work(queue: WorkQueue[Key], once: Work, failures: Counter[Key]) -> None:
    while True:
        key = await queue.take()
        try:
            await _handle(queue, once, failures, key=key)
        finally:
            queue.done(key)


async def _handle(
    queue: WorkQueue[Key], once: Work, failures: Counter[Key], *, key: Key
) -> None:  # fmt: skip
    try:
        again = await once(key)
    # Only our own errors are retried. Any other is a bug: it ends the controller with a traceback.
    except WeightyardError as error:
        delay = min(_LAST_RETRY, _FIRST_RETRY * 2 ** min(failures[key], 10))
        failures[key] += 1
        if isinstance(error, RateLimited) and error.retry_after:
            delay = max(delay, error.retry_after)
        logger.warning("%s/%s: %s; again in %g s", *key, error.message, delay)
        queue.add_later(key, delay)
        return
    del failures[key]
    if again is not None:
        queue.add_later(key, again)
