"""Requests for several chunks in a row: where they are made, what they spare, and who they must not keep waiting."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_agent.chunks import chunk_range
from cache_agent.fetch.download import Tick
from cache_agent.fetch.engine import EngineOptions
from cache_agent.fetch.job import AssignedRange, Job, SourceRetryPolicy
from cache_agent.fetch.range_planner import (
    LAST_QUEUES,
    RUN_CHUNKS,
    RangeRequest,
    choose_queue,
    plan_queues,
    run_length,
)
from cache_agent.fetch.values import PullRequest
from cache_agent.sources.decorators import Breaker, Limited, WithBreaker
from cache_agent.sources.image import ImageSource
from cache_agent.sources.source import ChunkRange, Tier
from cache_agent.sources.streams import chained, joined
from cache_agent.sources.throttle import Caps, Throttle
from modelimage.digest import Digest
from modelimage.errors import RateLimited, Unreachable
from modelimage.ranges import ByteRange
from modelimage.record import CHUNK_SIZE, RecordFile, Role
from modelimage.reference import parse_image
from modelimage.repository import BlobStream
from tests.cache_agent import faults
from tests.cache_agent.fetch.test_pull import files_of
from tests.cache_agent.images import simple_image
from tests.cache_agent.nodes import NodeFactory, pull
from tests.cache_agent.peers.simulation import Bytes
from tests.servers.process import wait_until


def large(chunks: int, name: str = "f") -> RecordFile:
    digests = tuple(f"{n:064x}" for n in range(chunks))
    digest = Digest.of(name.encode())
    return RecordFile(name, chunks * CHUNK_SIZE, digest, Role.WEIGHT, digest, digests)


@dataclass
class Place:
    """A source of zeros that notes which ranges it was asked for."""

    tier: Tier = Tier.REGISTRY
    name: str = "place"
    authorizes: bool = True
    ranges: list[ByteRange] = field(default_factory=list)

    def open(self, pieces: Sequence[ChunkRange]) -> AbstractContextManager[BlobStream]:
        return chained(pieces, self._open)

    @contextmanager
    def _open(self, piece: ChunkRange) -> Iterator[BlobStream]:
        self.ranges.append(piece.range)
        yield Bytes(len(piece.range))


class Nothing:
    """A carrier that keeps nothing."""

    def mark_unproven(self) -> None:
        pass

    def receive(
        self, piece: ChunkRange, stream: BlobStream, buffer: memoryview, tick: Tick
    ) -> None:
        pass

    def advance(self) -> Sequence[ChunkRange]:
        return ()


def a_job(files: Sequence[RecordFile], tier: Tier = Tier.REGISTRY) -> Job:
    missing = {file.digest: range(file.chunk_count()) for file in files}
    return Job(
        plan_queues(files, missing),
        [Place(tier)],
        {file.digest: Nothing() for file in files},
        priority=0,
        monotonic=lambda: 100.0,
        policy=SourceRetryPolicy(),
    )


def next_work(job: Job) -> AssignedRange:
    work = job.next_work(None)
    assert isinstance(work, AssignedRange)
    return work


def indices(work: AssignedRange) -> list[int]:
    return [piece.index for piece in work.state.range_request.pieces]


def test_a_job_waits_for_its_turn_while_it_has_requests_and_no_worker() -> None:
    job = a_job([large(4, "f")])
    assert job.is_waiting()
    first = next_work(job)
    assert not job.is_waiting()
    job.succeeded(first)
    assert job.is_waiting()
    while not job.finished.is_set():
        job.succeeded(next_work(job))
    assert not job.is_waiting()


# -- planning --------------------------------------------------------------------------------


@given(chunks=st.lists(st.integers(2, 20), min_size=1, max_size=5), data=st.data())
def test_every_chunk_is_asked_for_once_in_runs_that_grow_short_at_the_end(
    chunks: list[int], data: st.DataObject
) -> None:
    files = [large(count, f"f{number}") for number, count in enumerate(chunks)]
    job = a_job(files)
    asked: list[tuple[Digest, int]] = []
    busy: list[AssignedRange] = []
    while not job.finished.is_set():
        found = job.next_work(None)
        if isinstance(found, AssignedRange):
            pieces = found.state.range_request.pieces
            assert 1 <= len(pieces) <= RUN_CHUNKS
            assert [p.index for p in pieces] == list(
                range(pieces[0].index, pieces[0].index + len(pieces))
            )
            asked += [(p.file.digest, p.index) for p in pieces]
            busy.append(found)
        if busy and (found is None or data.draw(st.booleans())):
            job.succeeded(busy.pop(data.draw(st.integers(0, len(busy) - 1))))
    assert sorted(asked) == sorted((f.digest, n) for f in files for n in range(f.chunk_count()))


@given(st.integers(1, 1000))
def test_a_run_leaves_half_of_what_waits_to_others(waiting: int) -> None:
    length = run_length(waiting)
    assert 1 <= length <= RUN_CHUNKS
    assert length == 1 or waiting - length >= length


def test_nodes_that_share_the_work_chunk_by_chunk_make_no_runs() -> None:
    job = a_job([large(9)], Tier.PEER)
    assert indices(next_work(job)) == [0]
    assert indices(next_work(job)) == [1]


def test_what_failed_is_asked_for_alone() -> None:
    job = a_job([large(32)])
    first = next_work(job)
    assert indices(first) == list(range(8))
    job.failed(first, Unreachable("away"), RangeRequest(first.state.range_request.pieces[2:]))
    job._monotonic = lambda: 200.0
    assert indices(next_work(job)) == list(range(2, 8)), "what is left of it, and no more"
    assert indices(next_work(job)) == list(range(8, 16))


@pytest.mark.parametrize(("asked", "ends"), [(None, False), (60.0, False), (7200.0, True)])
def test_a_host_that_asks_for_hours_is_not_waited_for(asked: float | None, ends: bool) -> None:
    """With no other source, its answer is the pull's; minutes are waited for."""
    job = a_job([large(2)])
    first = next_work(job)
    job.failed(first, RateLimited("slow down", retry_after=asked), first.state.range_request)
    job._monotonic = lambda: 300.0
    if not ends:
        assert indices(next_work(job)) == [0]
        return
    assert job.next_work(None) is None
    assert isinstance(job.error, RateLimited)


def test_when_few_files_are_left_all_of_them_come_to_their_end_together() -> None:
    assert choose_queue([3, 9], [0, 0], 0) == 1
    assert choose_queue([9, 9], [0, 0], 1) == 1, "of equals one's own"
    assert choose_queue([3, 9], [0, 1], 0) == 0, "where another worker is it could not hash"
    many = [3, *[9] * LAST_QUEUES]
    assert choose_queue(many, [0] * len(many), 0) == 0, "of many files some are to land soon"


# -- fetching --------------------------------------------------------------------------------


def test_a_run_is_one_request_and_its_bytes_are_checked_as_ever(open_node: NodeFactory) -> None:
    image, record, contents = simple_image(weights=[5 * CHUNK_SIZE + 7])
    weight = next(file for file in record.files if file.size > CHUNK_SIZE)
    node = open_node({"reg.test/m": image}, engine=EngineOptions(streams=1))
    assert files_of(pull(node).path) == contents
    asked = [r for digest, r in image.requests if digest == weight.layer]
    assert sum(map(len, asked)) == weight.size
    assert [len(r) // CHUNK_SIZE for r in asked] == [3, 1, 1, 0]


def test_of_a_run_that_breaks_off_what_came_whole_is_kept(open_node: NodeFactory) -> None:
    image, record, contents = simple_image(weights=[6 * CHUNK_SIZE])
    weight = next(file for file in record.files if file.size > CHUNK_SIZE)
    broken = faults.BreaksAfter(image, weight.layer, 2 * CHUNK_SIZE + 5000)
    node = open_node({"reg.test/m": broken}, engine=EngineOptions(streams=1))
    with pytest.raises(Unreachable):
        pull(node)
    image.requests.clear()
    open_node.images["reg.test/m"] = image
    assert files_of(pull(node).path) == contents
    asked = [r for digest, r in image.requests if digest == weight.layer]
    assert sum(map(len, asked)) == 4 * CHUNK_SIZE + 1, "and a byte that shows the right to the rest"


def test_who_waits_need_not_wait_for_the_end_of_a_run(open_node: NodeFactory) -> None:
    early, record, contents = simple_image(weights=[6 * CHUNK_SIZE], seed=1)
    weight = next(file for file in record.files if file.size > CHUNK_SIZE)
    gate, breaker = faults.Gate(early), Breaker(lambda: 0.0, after=1)
    urgent, _, _ = simple_image(weights=[5000], seed=2)
    urgent.requests = early.requests  # one list, for the order of both
    node = open_node(
        {"reg.test/early": gate, "reg.test/urgent": urgent},
        engine=EngineOptions(streams=1),
        sources=lambda resolved, reader, name: [
            WithBreaker(ImageSource(reader, resolved.record, resolved.layers, name), breaker)
        ],
    )
    warming = node.pull(PullRequest(parse_image("reg.test/early:v1"), priority=10))
    gate.reached.wait()
    waiting = node.pull(PullRequest(parse_image("reg.test/urgent:v1"), priority=100))
    wait_until(lambda: any(job.priority == 100 for job in node.engine._jobs), what="its job")
    gate.opened.set()
    assert waiting.result()
    done = warming.result()
    assert done is not None
    assert files_of(done.path) == contents
    asked = [(digest == weight.layer, len(r)) for digest, r in early.requests]
    assert asked[0] == (True, 3 * CHUNK_SIZE)
    assert not asked[1][0], "the urgent one came after a chunk, in the middle of the run"
    # What was asked for and not taken is asked for again.
    assert sum(size for mine, size in asked if mine) == 8 * CHUNK_SIZE
    assert not breaker.is_open(), "its source did nothing wrong"


# -- places that hold files ------------------------------------------------------------------


def pieces_of(file: RecordFile, *numbers: int) -> list[ChunkRange]:
    return [ChunkRange(file, n, chunk_range(file.size, n)) for n in numbers]


def test_what_follows_in_one_file_is_one_request_for_any_place() -> None:
    one, two = large(5, "one"), large(2, "two")
    pieces = [*pieces_of(one, 0, 1, 3, 4), *pieces_of(two, 0, 1)]
    place, buffer = Place(), memoryview(bytearray(8 << 20))
    total = 0
    with place.open(pieces) as stream:
        while count := stream.readinto(buffer):
            total += count
    assert total == 6 * CHUNK_SIZE
    assert [(r.start // CHUNK_SIZE, r.stop // CHUNK_SIZE) for r in place.ranges] == [
        (0, 2),
        (3, 5),
        (0, 2),
    ]
    assert joined(joined(pieces)) == joined(pieces)


@pytest.mark.parametrize("lifted", [False, True])
def test_a_cap_asks_for_little_at_a_time(lifted: bool) -> None:
    caps = Caps([Throttle(1e6, lambda: 0.0), Throttle(4e6, lambda: 0.0)])
    if lifted:
        caps.lift()
    source = Limited(Place(), caps, lambda seconds: None)
    with source.open(pieces_of(large(1), 0)) as stream:
        assert stream.readinto(memoryview(bytearray(4 << 20))) == (4 << 20 if lifted else 250_000)


@given(rate=st.floats(0, 1e12), size=st.integers(1, 1 << 30))
def test_a_burst_is_a_part_of_what_is_wanted_and_never_nothing(rate: float, size: int) -> None:
    burst = Throttle(rate, lambda: 0.0).burst(size)
    assert 1 <= burst <= size
