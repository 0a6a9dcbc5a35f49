"""How many transfers run at once: one for each core, more only while the cores idle."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_agent.fetch.engine import EngineOptions, FetchEngine
from cache_agent.fetch.job import Job, SourceRetryPolicy
from cache_agent.fetch.limiter import WINDOW_SECONDS, ConcurrencyLimiter, worth_another
from cache_agent.fetch.range_planner import plan_queues
from cache_agent.sources.source import ChunkRange
from modelimage.repository import BlobStream
from tests.cache_agent.fetch.test_range_requests import Nothing, Place, large
from tests.cache_agent.peers.simulation import Bytes


class Machine:
    """A clock, and a process on it that keeps `busy` cores busy."""

    def __init__(self, busy: float) -> None:
        self.busy, self.now, self.cpu = busy, 100.0, 7.0

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.cpu += seconds * self.busy

    def limiter(self, cores: int) -> ConcurrencyLimiter:
        return ConcurrencyLimiter(cores, lambda: self.now, lambda: self.cpu)


@given(st.integers(1, 64), st.integers(0, 64), st.floats(0, 64))
def test_each_core_may_have_a_transfer_and_more_only_while_half_of_them_idle(
    cores: int, active: int, used: float
) -> None:
    assert worth_another(active, cores, used) == (active < cores or 2 * used < cores)


@pytest.mark.parametrize(("busy", "joined"), [(0.1, 6), (1.2, 2)])
def test_what_the_cores_did_lately_decides(busy: float, joined: int) -> None:
    machine = Machine(busy)
    limiter = machine.limiter(cores=2)
    for _ in range(6):
        if limiter.has_slot():
            limiter.join()
        machine.pass_time(WINDOW_SECONDS)
    assert limiter._active == joined


def test_the_first_takes_the_cores_as_busy_whatever_was_before() -> None:
    machine = Machine(busy=0.0)
    limiter = machine.limiter(cores=1)
    limiter.join()
    limiter.leave()
    machine.pass_time(3600)
    assert limiter.has_slot()
    limiter.join()
    machine.pass_time(WINDOW_SECONDS / 2)
    assert not limiter.has_slot()
    machine.pass_time(WINDOW_SECONDS / 2)
    assert limiter.has_slot()


def test_who_left_makes_room() -> None:
    limiter = Machine(busy=1.0).limiter(cores=1)
    limiter.join()
    assert not limiter.has_slot()
    limiter.leave()
    assert limiter.has_slot()


class Meeting(Place):
    """A place that notes how many ask at once, and calls `meet` for each."""

    def __init__(self, meet: Callable[[], object]) -> None:
        super().__init__()
        self._meet, self._lock = meet, threading.Lock()
        self._now = self.most = 0

    @contextmanager
    def open(self, pieces: Sequence[ChunkRange]) -> Iterator[BlobStream]:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        self._meet()
        yield Bytes(sum(len(piece.range) for piece in pieces))
        with self._lock:
            self._now -= 1


def fetch(place: Place, limiter: ConcurrencyLimiter) -> None:
    """Run a job of six files by three workers."""
    files = [large(2, name) for name in "abcdef"]
    queues = plan_queues(files, {file.digest: range(2) for file in files})
    sinks = {file.digest: Nothing() for file in files}
    job = Job(
        queues, [place], sinks, priority=0, monotonic=time.monotonic, policy=SourceRetryPolicy()
    )
    engine = FetchEngine(EngineOptions(streams=3), limiter=limiter)
    try:
        engine.run(job)
    finally:
        engine.close()


def test_workers_wait_while_one_keeps_the_only_core_busy() -> None:
    place = Meeting(lambda: None)
    # By far more than the core, so that it doesn't matter what happens between a look at one clock and at the other.
    fetch(place, ConcurrencyLimiter(1, time.monotonic, lambda: 1000 * time.monotonic()))
    assert place.most == 1


def test_all_workers_fetch_while_the_only_core_idles() -> None:
    barrier = threading.Barrier(3)
    place = Meeting(barrier.wait)
    fetch(place, ConcurrencyLimiter(1, time.monotonic, lambda: 0.0))
    assert place.most == 3
