"""Where the event loop meets threads that outlive it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import aclosing

import pytest

from cache_agent.fetch.values import PullSnapshot, PullState
from cache_agent.node.threads import BlockingExecutor, call_soon, wait_event


class LatePull:
    """A pull that ends when the test says so, whoever cancelled it."""

    def __init__(self) -> None:
        self.cancelled = False
        self._tell: list[Callable[[], None]] = []

    def when_ended(self, tell: Callable[[], None]) -> None:
        self._tell.append(tell)

    def snapshot(self) -> PullSnapshot:
        return PullSnapshot(PullState.FETCHING)

    def cancel(self) -> None:
        self.cancelled = True

    def end(self) -> None:
        for tell in self._tell:
            tell()


def in_thread(call: Callable[[], None]) -> None:
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


async def states(executor: BlockingExecutor, pull: LatePull, *, leave: bool) -> list[PullState]:
    """What a follower sees; it leaves after the first, or the pull ends then."""
    seen = []
    async with aclosing(executor.follow(pull, 60)) as snapshots:  # type: ignore[arg-type]
        async for each in snapshots:
            seen.append(each.state)
            if leave:
                break
            in_thread(pull.end)
    return seen


@pytest.mark.parametrize(("leave", "seen"), [(False, 2), (True, 1)])
def test_a_pull_is_followed_to_its_end_and_cancelled_by_who_leaves(
    *, leave: bool, seen: int
) -> None:
    executor, pull = BlockingExecutor(1), LatePull()
    assert len(asyncio.run(states(executor, pull, leave=leave))) == seen
    assert pull.cancelled is leave
    executor.close()


def test_a_pull_may_end_after_the_loop_of_who_followed_it() -> None:
    """In the pull's own thread, where an error would hide what else waits for its end."""
    executor, pull = BlockingExecutor(1), LatePull()
    asyncio.run(states(executor, pull, leave=True))
    pull.end()
    executor.close()


def test_other_errors_of_a_loop_are_told() -> None:
    class Broken(asyncio.SelectorEventLoop):
        def call_soon_threadsafe(self, *args: object, **options: object) -> asyncio.Handle:
            raise RuntimeError("broken")

    loop = Broken()
    with pytest.raises(RuntimeError, match="broken"):
        call_soon(loop, print)
    loop.close()
    call_soon(loop, print)


@pytest.mark.parametrize("steps", range(6))
def test_a_cancellation_is_never_lost_to_the_event_that_comes_with_it(steps: int) -> None:
    """Cancelled in any step of the loop around the one in which the event is set, the task ends."""

    async def main() -> bool:
        event = asyncio.Event()

        async def loop() -> None:
            while True:
                await wait_event(event, 3600)
                event.clear()

        task = asyncio.create_task(loop())
        for _ in range(3):
            await asyncio.sleep(0)
        event.set()
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        for _ in range(20):
            await asyncio.sleep(0)
        ended = task.done()
        task.cancel()
        return ended

    assert asyncio.run(main())


def test_an_event_that_does_not_come_is_waited_for_so_long() -> None:
    async def main() -> tuple[bool, bool]:
        event = asyncio.Event()
        before = await wait_event(event, 0.01)
        event.set()
        return before, await wait_event(event, None)

    assert asyncio.run(main()) == (False, True)
