"""What is asked at the same time is asked once, or done together; nothing is kept, and nobody's end hurts another."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from functools import wraps
from typing import ParamSpec

import pytest

from cache_agent.node.threads import BlockingExecutor
from cache_agent.servers.batcher import Batcher, BatchWindow, SingleFlight
from modelimage.errors import Unreachable

P = ParamSpec("P")


def in_a_loop(test: Callable[P, Coroutine[None, None, None]]) -> Callable[P, None]:
    @wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


@asynccontextmanager
async def bridged() -> AsyncIterator[BlockingExecutor]:
    executor = BlockingExecutor(4)
    yield executor
    executor.close()


class Held:
    """Something blocking that ends when it is told to."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.calls: list[object] = []

    def question(self) -> int:
        self.calls.append("question")
        self.go.wait()
        return len(self.calls)

    def tenfold(self, numbers: Sequence[int]) -> list[int]:
        self.calls.append(list(numbers))
        self.go.wait()
        if -1 in numbers:
            raise Unreachable("no route")
        return [number * 10 for number in numbers]


async def turns(count: int = 5) -> None:
    """Let the others run."""
    for _ in range(count):
        await asyncio.sleep(0)


@in_a_loop
async def test_who_asks_together_gets_one_answer_and_who_asks_later_a_new_one() -> None:
    async with bridged() as executor:
        together, held = SingleFlight[int](executor), Held()
        asked = [asyncio.create_task(together.ask("tag", held.question)) for _ in range(9)]
        await turns()
        assert await together.ask("another", lambda: 7) == 7
        held.go.set()
        assert await asyncio.gather(*asked) == [1] * 9
        assert await together.ask("tag", held.question) == 2


@in_a_loop
async def test_a_question_waits_until_nobody_joins_any_more() -> None:
    async with bridged() as executor:
        together = SingleFlight[int](executor, BatchWindow(0.0001, 3))
        assert await asyncio.gather(*(together.ask("tag", lambda: 1) for _ in range(5))) == [1] * 5
        assert await together.ask("tag", lambda: 2) == 2


@in_a_loop
async def test_what_a_question_raises_is_raised_to_all_and_forgotten() -> None:
    def away() -> int:
        raise Unreachable("no route")

    async with bridged() as executor:
        together = SingleFlight[int](executor)
        asked = [together.ask("tag", away) for _ in range(3)]
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(each) for each in outcomes] == [Unreachable] * 3
        assert await together.ask("tag", lambda: 1) == 1


@in_a_loop
async def test_who_gives_up_takes_no_answer_from_the_others() -> None:
    async with bridged() as executor:
        together, held = SingleFlight[int](executor), Held()
        first, second = (asyncio.create_task(together.ask("tag", held.question)) for _ in range(2))
        await turns()
        first.cancel()
        await turns()
        held.go.set()
        assert await second == 1
        assert first.cancelled()


@in_a_loop
async def test_what_is_asked_in_the_same_moment_and_meanwhile_goes_together_in_order() -> None:
    async with bridged() as executor:
        held = Held()
        batches = Batcher(executor, held.tenfold)
        first = [asyncio.create_task(batches.ask(number)) for number in range(3)]
        await turns()
        then = [asyncio.create_task(batches.ask(number)) for number in range(3, 8)]
        await turns()
        held.go.set()
        assert await asyncio.gather(*first, *then) == [number * 10 for number in range(8)]
        assert held.calls == [[0, 1, 2], [3, 4, 5, 6, 7]]


@in_a_loop
async def test_what_a_call_raises_is_raised_to_those_of_that_call_only() -> None:
    async with bridged() as executor:
        held = Held()
        held.go.set()
        batches = Batcher(executor, held.tenfold)
        outcomes = await asyncio.gather(batches.ask(-1), batches.ask(2), return_exceptions=True)
        assert [type(each) for each in outcomes] == [Unreachable] * 2
        assert await batches.ask(2) == 20


@in_a_loop
async def test_who_gives_up_before_the_call_began_has_asked_for_nothing() -> None:
    async with bridged() as executor:
        held = Held()
        batches = Batcher(executor, held.tenfold)
        running = [asyncio.create_task(batches.ask(number)) for number in (1, 2)]
        await turns()
        waiting = [asyncio.create_task(batches.ask(number)) for number in (3, 4)]
        await turns()
        for each in (running[0], waiting[0]):
            each.cancel()
            with suppress(asyncio.CancelledError):
                await each
        held.go.set()
        assert await asyncio.gather(running[1], waiting[1]) == [20, 40]
        assert held.calls == [[1, 2], [4]]


def test_a_bridge_that_is_closed_has_done_what_was_begun() -> None:
    done: list[int] = []

    async def begin() -> None:
        async with bridged() as executor:
            executor.begin(lambda: done.append(1))

    asyncio.run(begin())
    assert done == [1]


@pytest.mark.parametrize("size", [1, 50])
@in_a_loop
async def test_every_asker_has_its_own_answer(size: int) -> None:
    async with bridged() as executor:
        batches: Batcher[int, int] = Batcher(executor, lambda numbers: [-n for n in numbers])
        assert await asyncio.gather(*map(batches.ask, range(size))) == [-n for n in range(size)]
