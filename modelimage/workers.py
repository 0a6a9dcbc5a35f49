"""Runs the jobs of one stage in threads that end with it: at the first error, and at Ctrl-C, the others stop."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import TypeVar

from modelimage.repository import StopRequested

Item = TypeVar("Item")
Result = TypeVar("Result")


class StopSwitch:
    """Wraps progress callbacks so that a worker stops at its next report."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        self._event.set()

    def guard(self, advance: Callable[[int], None]) -> Callable[[int], None]:
        """`advance`, but raising StopRequested once the switch is set."""

        def guarded(count: int) -> None:
            if self._event.is_set():
                raise StopRequested
            advance(count)

        return guarded


def both(first: Callable[[int], None], second: Callable[[int], None]) -> Callable[[int], None]:
    """Tells two progress callbacks; what the first raises, the second doesn't hear of."""

    def tell(count: int) -> None:
        first(count)
        second(count)

    return tell


def run_all(
    items: Iterable[Item],
    job: Callable[[Item, Callable[[int], None]], Result],
    *,
    advance: Callable[[int], None],
    workers: int,
) -> list[Result]:
    """`job(item, advance)` for every item, `workers` at a time; results in order.

    No thread outlives the call. The first failure, or what interrupts the caller, stops the jobs at their next
    progress report and is raised.
    """
    switch = StopSwitch()
    guarded = switch.guard(advance)
    with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="build") as pool:
        futures = [pool.submit(job, item, guarded) for item in items]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
            return _results(futures)
        finally:
            switch.set()
            pool.shutdown(wait=False, cancel_futures=True)


def _results(futures: Sequence[Future[Result]]) -> list[Result]:
    for future in futures:
        error = future.exception() if future.done() else None
        if error is not None:
            raise error
    return [future.result() for future in futures]


def available_cores() -> int:
    """Cores this process may run on."""
    # Only Linux tells which of the machine's cores a process may have.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
