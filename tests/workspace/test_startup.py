"""A start's timeline: stages follow each other, whatever clocks say and whichever ends are known."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from workspace.startup import MEANINGS, StageName, Startup, TierPart, current_stage, timeline

SECONDS = st.floats(0, 1e7, allow_nan=False)
ENDS = st.dictionaries(st.sampled_from(StageName), SECONDS)
PARTS = st.lists(
    st.builds(TierPart, st.sampled_from(["disk", "peer", "hub"]), st.integers(0, 1 << 40), SECONDS),
    unique_by=lambda part: part.tier,
)


def startup(ends: dict[StageName, float], parts: list[TierPart]) -> Startup:
    return Startup(started_at="2026-01-01T00:00:00Z", stages=timeline(ends, parts))


def test_stages_follow_each_other() -> None:
    ends = {StageName.NODE: 1, StageName.VOLUME: 43, StageName.IMAGE: 44, StageName.HEALTH: 100.04}
    parts = [TierPart("peer", 30, 40.0), TierPart("disk", 12, 0.5)]
    assert [
        (each.name, each.seconds, each.bytes, each.tier) for each in timeline(ends, parts)
    ] == [
        ("node", 1, None, None), ("volume", 42, 42, None), ("volume", 0.5, 12, "disk"),
        ("volume", 40, 30, "peer"), ("image", 1, None, None), ("health", 56, None, None),
    ]  # fmt: skip


def test_a_clock_that_is_behind_makes_no_negative_stage() -> None:
    found = timeline({StageName.NODE: 5, StageName.VOLUME: 3, StageName.IMAGE: 6})
    assert [each.seconds for each in found] == [5, 0, 1]


@given(ENDS, PARTS)
def test_a_timeline_read_back_is_the_same(
    ends: dict[StageName, float], parts: list[TierPart]
) -> None:
    """Law: `timeline(s.ends, s.parts)` has the stages of `s`; also after the API server's JSON."""
    written = startup(ends, parts)
    read = Startup.model_validate_json(written.model_dump_json(by_alias=True))
    assert timeline(read.ends, read.parts) == written.stages


@given(ENDS)
def test_the_stage_that_runs_is_after_all_that_ended(ends: dict[StageName, float]) -> None:
    order = list(StageName)
    current = current_stage(ends)
    if StageName.HEALTH in ends or StageName.FIRST_TOKEN in ends:
        assert current is None
    else:
        assert current is not None
        assert all(order.index(each) < order.index(current) for each in ends)


def test_every_stage_has_a_meaning() -> None:
    assert list(MEANINGS) == list(StageName)


def test_a_start_without_a_scheduler_runs_no_stage_of_one() -> None:
    """A local server has neither a node to wait for nor an image to pull."""
    local = {StageName.NODE, StageName.IMAGE}
    assert current_stage({}, without=local) is StageName.VOLUME
    assert current_stage({StageName.VOLUME: 1.0}, without=local) is StageName.PROCESS
