"""One question for those who ask together; none for those who ask after."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from cache_agent.access.together import Together
from modelimage.errors import Unreachable
from tests.servers.process import wait_until


class Looked:
    """A question's name that counts how often it was looked up."""

    def __init__(self) -> None:
        self.times = 0

    def __hash__(self) -> int:
        self.times += 1
        return 1


def test_who_asks_together_gets_one_answer_and_who_asks_later_a_new_one() -> None:
    together: Together[int] = Together()
    tag = Looked()
    began, go = threading.Event(), threading.Event()

    def question() -> int:
        began.set()
        go.wait(30)
        return 1

    with ThreadPoolExecutor(10) as pool:
        first = pool.submit(together.ask, tag, question)
        assert began.wait(30)
        before = tag.times
        joined = [pool.submit(together.ask, tag, lambda: -1) for _ in range(8)]
        assert pool.submit(together.ask, "another", lambda: 7).result(30) == 7
        wait_until(lambda: tag.times == before + 8, what="eight who look")
        with together._lock:  # and have found
            go.set()
        assert [each.result(30) for each in (first, *joined)] == [1] * 9
    assert together.ask(tag, lambda: 2) == 2


def test_what_it_raises_is_raised_to_all_and_forgotten() -> None:
    together: Together[int] = Together()

    def away() -> int:
        raise Unreachable("no route")

    with pytest.raises(Unreachable):
        together.ask("tag", away)
    assert together.ask("tag", lambda: 1) == 1
