"""Worker tasks that take keys from a queue. Defines which errors are retried, and when.

Each key is a bulkhead: whatever goes wrong with one, known or not, delays that key alone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final

from modelimage.errors import RateLimited, WeightyardError
from workspace.controller.process.log_events import about
from workspace.controller.process.queue import WorkQueue

Key = tuple[str, str]
Work = Callable[[Key], Awaitable[float | None]]  # returns the seconds until the next pass
# Records an unexpected error where users look for it, such as the object's status.
Report = Callable[[Key, Exception], Awaitable[None]]

logger = logging.getLogger(__name__)

_FIRST_RETRY: Final = 0.5
_LAST_RETRY: Final = 60.0
_LONGEST_RETRY_AFTER: Final = 300.0


async def _log_only(_key: Key, _error: Exception) -> None:
    """The log line that every unexpected error gets is enough."""


class Passes:
    """A listener to passes over keys, for metrics. This one ignores them."""

    def started(self) -> None:
        """Takes note of a pass that began."""

    def finished(self, outcome: str, seconds: float) -> None:
        """Takes note of its end. `outcome`: `done`, the class of an error of ours, or `bug`."""


class Workers:
    """Runs `workers` tasks over a queue. A failed key is retried with growing delays.

    `report` is called for each error that isn't ours, which is a bug.
    """

    def __init__(
        self, queue: WorkQueue[Key], once: Work, *, workers: int, report: Report = _log_only,
        passes: Passes | None = None,
    ) -> None:  # fmt: skip
        self._queue = queue
        self._once = once
        self._workers = workers
        self._report = report
        self._passes = passes or Passes()
        self._attempts: Counter[Key] = Counter()

    async def run(self) -> None:
        """Works until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._workers):
                    group.create_task(self._work())
        finally:
            # Also after a failure: who waits for the queue would wait for ever.
            self._queue.close()

    async def _work(self) -> None:
        while True:
            key = await self._queue.take()
            try:
                await self._handle(key)
            finally:
                self._queue.done(key)

    async def _handle(self, key: Key) -> None:
        outcome, began = "cancelled", time.monotonic()
        self._passes.started()
        try:
            again = await self._once(key)
            outcome = "done"
        except WeightyardError as error:
            outcome = type(error).__name__
            again = self._delay(key, error)
            logger.warning(
                "%s/%s: %s; again in %g s",
                *key,
                error.message,
                again,
                extra=about("pass failed", object="/".join(key)),
            )
        except Exception as error:
            # A bug, or input that nobody thought of. It must not reach the other keys, so it ends here.
            outcome = "bug"
            again = self._delay(key, error)
            logger.exception(
                "%s/%s: unexpected error; again in %g s",
                *key,
                again,
                extra=about("pass failed unexpectedly", object="/".join(key)),
            )
            await self._reported(key, error)
        else:
            del self._attempts[key]
        finally:
            self._passes.finished(outcome, time.monotonic() - began)
        if again is not None:
            self._queue.add_later(key, again)

    async def _reported(self, key: Key, error: Exception) -> None:
        try:
            await self._report(key, error)
        # A bulkhead: the worker has other Workspaces.
        except Exception:
            logger.exception(
                "%s/%s: the error can't be reported",
                *key,
                extra=about("error not reported", object="/".join(key)),
            )

    def _delay(self, key: Key, error: Exception) -> float:
        delay = min(_LAST_RETRY, _FIRST_RETRY * 2.0 ** min(self._attempts[key], 10))
        self._attempts[key] += 1
        if isinstance(error, RateLimited) and error.retry_after:
            # A registry that asks for days must not keep a Workspace from another that was set since.
            delay = max(delay, min(error.retry_after, _LONGEST_RETRY_AFTER))
        return delay
