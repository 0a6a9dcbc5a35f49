"""Deduplicates identical concurrent calls (SingleFlight) and batches similar ones (Batcher).

When fifty pods start together, a thread for each would cost more than the work itself, so calls are collected in the
event loop and run in few threads. Instances belong to one event loop. Results are not cached.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

from cache_agent.node.threads import BlockingExecutor

T = TypeVar("T")
Request = TypeVar("Request")
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class BatchWindow:
    """How long a call waits for others to join: until none came for `pause` seconds, at most `most` pauses."""

    pause: float = 0.0
    most: int = 0


@dataclass(slots=True)
class _Call(Generic[T]):
    """A call in progress and the number of callers that wait for it."""

    waiting: int = 0
    answer: asyncio.Future[T] = field(init=False)


class SingleFlight(Generic[T]):
    """Runs one call for all concurrent callers with the same key. A later caller starts another."""

    def __init__(self, executor: BlockingExecutor, window: BatchWindow | None = None) -> None:
        self._executor, self._window = executor, window or BatchWindow()
        self._running: dict[Hashable, _Call[T]] = {}

    async def ask(self, what: Hashable, work: Callable[[], T]) -> T:
        """Join the running call with the key `what`, or start `work` in a thread. Raises what the call raised.

        Cancelling one caller doesn't cancel the call for the others.
        """
        call = self._running.get(what)
        if call is None:
            call = self._running[what] = _Call()
            call.answer = self._executor.begin(partial(self._put, call, work))
            call.answer.add_done_callback(partial(self._answered, what))
        call.waiting += 1
        # Without the shield, one cancelled caller would cancel the future that the others await.
        return await asyncio.shield(call.answer)

    def _put(self, call: _Call[T], work: Callable[[], T]) -> T:
        waiting = 0
        for _ in range(self._window.most):
            time.sleep(self._window.pause)
            if call.waiting == waiting:
                break
            waiting = call.waiting
        return work()

    def _answered(self, what: Hashable, answer: asyncio.Future[T]) -> None:
        del self._running[what]
        answer.exception()  # retrieved here, or asyncio logs it when every caller was cancelled


class Batcher(Generic[Request, Answer]):
    """Collects requests while `do` is running, then calls it with all of them, in order of arrival.

    `do` returns one answer per request, in the same order. An error that it raises goes to all callers of that batch.
    """

    def __init__(
        self, executor: BlockingExecutor, do: Callable[[Sequence[Request]], Sequence[Answer]]
    ) -> None:
        self._executor, self._do = executor, do
        self._waiting: list[tuple[Request, asyncio.Future[Answer]]] = []
        self._busy = self._planned = False

    async def ask(self, what: Request) -> Answer:
        """Wait for the answer to a request. Cancelled before its batch begins, the request is dropped."""
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((what, answer))
        self._plan()
        return await answer

    def _plan(self) -> None:
        """Start a batch in the next iteration of the event loop, so that callers of this one are in it."""
        if not self._busy and not self._planned:
            self._planned = True
            asyncio.get_running_loop().call_soon(self._go)

    def _go(self) -> None:
        self._planned = False
        # Requests of cancelled callers are dropped: nobody would use the result.
        batch = [(what, answer) for what, answer in self._waiting if not answer.cancelled()]
        self._waiting.clear()
        if not batch:
            return
        # One batch at a time: requests that come meanwhile form the next one, which makes it larger under load.
        self._busy = True
        doing = self._executor.begin(partial(self._do, [what for what, _ in batch]))
        doing.add_done_callback(partial(self._done, [answer for _, answer in batch]))

    def _done(
        self, waiting: Sequence[asyncio.Future[Answer]], done: asyncio.Future[Sequence[Answer]]
    ) -> None:
        # Planned before the answers are given, so that requests which came meanwhile don't wait for these callers.
        self._busy = False
        self._plan()
        error = done.exception()
        if error is not None:
            # A caller that was cancelled meanwhile has its result already.
            for each in waiting:
                if not each.done():
                    each.set_exception(error)
            return
        for each, answer in zip(waiting, done.result(), strict=True):
            if not each.done():
                each.set_result(answer)
