"""For callers that come at the same time: one question for all who ask the same, one call for all who ask alike.

A thread for each of fifty pods that start together costs more than what they want done, so what they want is gathered
in the event loop and done in few threads. Belongs to one event loop; nothing here keeps an answer.
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
Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class BatchWindow:
    """How long to wait for others: until none came for `pause` seconds, `most` times at most."""

    pause: float = 0.0
    most: int = 0


@dataclass(slots=True)
class _Question(Generic[T]):
    """Something that is being asked, and by how many."""

    askers: int = 0
    answer: asyncio.Future[T] = field(init=False)


class SingleFlight(Generic[T]):
    """One question for all who ask it at the same time; who asks after an answer came asks anew."""

    def __init__(self, executor: BlockingExecutor, patience: BatchWindow | None = None) -> None:
        self._executor, self._patience = executor, patience or BatchWindow()
        self._asking: dict[Hashable, _Question[T]] = {}

    async def ask(self, what: Hashable, question: Callable[[], T]) -> T:
        """The answer to a question that is being asked already, else to this one. Raises what it raised.

        Whoever is cancelled leaves the others their answer.
        """
        asked = self._asking.get(what)
        if asked is None:
            asked = self._asking[what] = _Question()
            asked.answer = self._executor.begin(partial(self._put, asked, question))
            asked.answer.add_done_callback(partial(self._answered, what))
        asked.askers += 1
        return await asyncio.shield(asked.answer)

    def _put(self, asked: _Question[T], question: Callable[[], T]) -> T:
        askers = 0
        for _ in range(self._patience.most):
            time.sleep(self._patience.pause)
            if asked.askers == askers:
                break
            askers = asked.askers
        return question()

    def _answered(self, what: Hashable, answer: asyncio.Future[T]) -> None:
        del self._asking[what]
        answer.exception()  # seen, also when everyone who asked has gone


class Batcher(Generic[Asked, Answer]):
    """Calls `do` with all that is asked while it is busy, in the order in which it was asked.

    `do` gives an answer for each, in order. What it raises is raised to all of that call.
    """

    def __init__(
        self, executor: BlockingExecutor, do: Callable[[Sequence[Asked]], Sequence[Answer]]
    ) -> None:
        self._executor, self._do = executor, do
        self._waiting: list[tuple[Asked, asyncio.Future[Answer]]] = []
        self._busy = self._planned = False

    async def ask(self, what: Asked) -> Answer:
        """The answer. Whoever is cancelled before the call began has asked for nothing."""
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((what, answer))
        self._plan()
        return await answer

    def _plan(self) -> None:
        """Go when those who ask in the same moment have asked."""
        if not self._busy and not self._planned:
            self._planned = True
            asyncio.get_running_loop().call_soon(self._go)

    def _go(self) -> None:
        self._planned = False
        batch = [(what, answer) for what, answer in self._waiting if not answer.cancelled()]
        self._waiting.clear()
        if not batch:
            return
        self._busy = True
        doing = self._executor.begin(partial(self._do, [what for what, _ in batch]))
        doing.add_done_callback(partial(self._done, [answer for _, answer in batch]))

    def _done(
        self, waiting: Sequence[asyncio.Future[Answer]], done: asyncio.Future[Sequence[Answer]]
    ) -> None:
        self._busy = False
        self._plan()
        error = done.exception()
        if error is not None:
            for each in waiting:
                if not each.done():
                    each.set_exception(error)
            return
        for each, answer in zip(waiting, done.result(), strict=True):
            if not each.done():
                each.set_result(answer)
