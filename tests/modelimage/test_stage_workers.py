"""Threads of a stage end with it: at success, at the first error, and at an interruption."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from modelimage.stage_workers import run_all

Advance = Callable[[int], None]


class Broken(Exception):
    """What a job raises."""


def work_forever(advance: Advance) -> None:
    while True:
        advance(1)


def test_results_come_in_the_order_of_the_items() -> None:
    gate = threading.Event()

    def job(item: int, advance: Advance) -> int:
        if item == 0:
            gate.wait()
        else:
            gate.set()
        advance(item)
        return item * item

    counted: list[int] = []
    assert run_all([0, 1, 2], job, advance=counted.append, workers=2) == [0, 1, 4]
    assert sorted(counted) == [0, 1, 2]


def test_the_first_error_stops_the_others_and_is_raised() -> None:
    def job(item: int, advance: Advance) -> None:
        if item == 0:
            raise Broken
        work_forever(advance)

    before = set(threading.enumerate())
    with pytest.raises(Broken):
        run_all(range(6), job, advance=lambda _: None, workers=3)
    assert set(threading.enumerate()) <= before


def test_an_interruption_in_a_callback_stops_everything() -> None:
    def interrupted(count: int) -> None:
        raise KeyboardInterrupt

    before = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt):
        run_all(range(3), lambda _, advance: work_forever(advance), advance=interrupted, workers=2)
    assert set(threading.enumerate()) <= before


def test_nothing_to_do_is_done() -> None:
    assert run_all([], lambda item, _: item, advance=lambda _: None, workers=1) == []
