"""The planner of range requests: what is queued, which queue a worker takes, which source it asks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cache_agent.fetch.range_planner import (
    BUNDLE_BYTES,
    SourceView,
    choose_queue,
    choose_source,
    plan_queues,
    unique_files,
)
from modelimage.digest import Digest
from modelimage.record import CHUNK_SIZE, RecordFile, Role

digests = st.integers(0, 5).map(lambda n: Digest.of(b"layer %d" % n))


@st.composite
def record_files(draw: st.DrawFn) -> list[RecordFile]:
    count = draw(st.integers(0, 8))
    made = []
    for number in range(count):
        size = draw(st.sampled_from([0, 1, 5000, CHUNK_SIZE - 1, CHUNK_SIZE, 3 * CHUNK_SIZE + 7]))
        chunks = tuple("0" * 64 for _ in range(-(-size // CHUNK_SIZE)))
        name = Digest.of(b"file %d" % draw(st.integers(0, 9)))
        made.append(RecordFile(f"f{number}", size, name, Role.WEIGHT, draw(digests), chunks))
    return made


@given(files=record_files(), data=st.data())
def test_queues_cover_exactly_what_is_missing_in_layer_order(
    files: list[RecordFile], data: st.DataObject
) -> None:
    files = unique_files(files)
    missing = {
        f.digest: data.draw(st.sets(st.sampled_from(range(f.chunk_count())))) if f.size else set()
        for f in files
    }
    queues = plan_queues(files, missing)
    pieces = [
        p for file_queue in queues for range_request in file_queue for p in range_request.pieces
    ]
    assert sorted((p.file.digest, p.index) for p in pieces) == sorted(
        (digest, index) for digest, indices in missing.items() for index in indices
    )
    order = [f.path for f in files]
    for file_queue in queues:
        for range_request in file_queue:
            assert len({p.file.layer for p in range_request.pieces}) == 1
            assert [order.index(p.file.path) for p in range_request.pieces] == sorted(
                order.index(p.file.path) for p in range_request.pieces
            )
            assert range_request.size <= BUNDLE_BYTES


@given(
    waiting=st.lists(st.integers(0, 3), max_size=6),
    last=st.none() | st.integers(0, 5),
    data=st.data(),
)
def test_a_free_worker_gets_a_queue_whenever_one_waits(
    waiting: list[int], last: int | None, data: st.DataObject
) -> None:
    workers = [data.draw(st.integers(0, 2)) for _ in waiting]
    last = last if last is not None and last < len(waiting) else None
    chosen = choose_queue(waiting, workers, last)
    assert (chosen is None) == (not any(waiting))
    if chosen is not None:
        assert waiting[chosen] > 0


def test_the_source_that_failed_least_is_asked_and_a_resting_one_is_waited_for() -> None:
    good, failed = SourceView(0.0, False, 0), SourceView(0.0, False, 2)
    assert choose_source([failed, good], 5.0) == 1
    assert choose_source([SourceView(9.0, False, 0), failed], 5.0) == 1
    assert choose_source([SourceView(9.0, False, 0), SourceView(7.0, False, 1)], 5.0) == 7.0
    assert choose_source([SourceView(0.0, True, 0)], 5.0) is None
