"""One question for all who ask it at the same time: fifty pods that start together are one request to a registry."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class Together(Generic[T]):
    """Answers are not kept: who asks after an answer came asks anew. Safe for threads."""

    def __init__(self) -> None:
        self._asking: dict[Hashable, Future[T]] = {}
        self._lock = threading.Lock()

    def ask(self, what: Hashable, question: Callable[[], T]) -> T:
        """The answer to a question that is being asked already, else to this one. Raises what it raised."""
        with self._lock:
            answer = self._asking.get(what)
            joined = answer is not None
            if answer is None:
                answer = self._asking[what] = Future()
        if not joined:
            self._answer(what, answer, question)
        return answer.result()

    def _answer(self, what: Hashable, answer: Future[T], question: Callable[[], T]) -> None:
        try:
            found = question()
        except BaseException as error:  # noqa: BLE001 - raised to everyone who waits for the answer
            self._forget(what)
            answer.set_exception(error)
        else:
            self._forget(what)
            answer.set_result(found)

    def _forget(self, what: Hashable) -> None:
        with self._lock:
            del self._asking[what]
