"""Runs the jobs of one stage in threads that end with it: after the first error or Ctrl-C, the others stop."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from typing import TypeVar

from modelimage.repository import StopRequested
from modelimage.spans import bound

Item = TypeVar("Item")
Result = TypeVar("Result")


class StopSwitch:
    """Wraps progress callbacks so that a worker stops at its next progress report."""

    def __init__(self) -> None:
        # Threads can't be interrupted from outside, so they check this at each progress report.
        self._event = threading.Event()

    def set(self) -> None:
        self._event.set()

    def guard(self, advance: Callable[[int], None]) -> Callable[[int], None]:
        """Wrap `advance` to raise StopRequested once the switch is set."""

        def guarded(count: int) -> None:
            if self._event.is_set():
                raise StopRequested
            advance(count)

        return guarded


def both(first: Callable[[int], None], second: Callable[[int], None]) -> Callable[[int], None]:
    """Combine two progress callbacks; an exception of the first skips the second."""

    def combined(count: int) -> None:
        first(count)
        second(count)

    return combined


def run_all(
    items: Iterable[Item],
    job: Callable[[Item, Callable[[int], None]], Result],
    *,
    advance: Callable[[int], None],
    workers: int,
) -> list[Result]:
    """Run `job(item, advance)` for every item, `workers` at a time; results are in order.

    No thread outlives the call. The first failure, or an interruption of the caller, stops the jobs at their next
    progress report and is raised.
    """
    switch = StopSwitch()
    guarded = switch.guard(advance)
    with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="build") as pool:
        futures = [pool.submit(bound(job), item, guarded) for item in items]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
            return _results(futures)
        finally:
            # Before the pool is joined: running jobs see the switch, and those not started are cancelled.
            switch.set()
            pool.shutdown(wait=False, cancel_futures=True)


def _results(futures: Sequence[Future[Result]]) -> list[Result]:
    for future in futures:
        # A finished failure is raised first: result() would wait for unfinished jobs, which haven't been stopped yet.
        error = future.exception() if future.done() else None
        if error is not None:
            raise error
    return [future.result() for future in futures]


def available_cores() -> int:
    """The number of cores this process may run on."""
    # Only Linux reports the cores assigned to a process.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
