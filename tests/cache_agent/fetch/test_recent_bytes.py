"""The rate of the last seconds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_agent.fetch.recent_bytes import SPAN, RecentBytes, recent_rate


def rate_of(arrivals: list[tuple[float, int]], began: float, now: float) -> float:
    recent = RecentBytes()
    for at, size in arrivals:
        recent.add(size, at)
    return recent_rate(recent.total(now), began, now)


@pytest.mark.parametrize("now", [3.0, 9.7, 10.1, 60.0, 3601.3])
def test_a_steady_stream_has_its_rate_at_any_time(now: float) -> None:
    arrivals = [(step / 10, 100) for step in range(int(now * 10) + 1)]
    assert rate_of(arrivals, 0.0, now) == pytest.approx(1000, rel=0.06)


def test_what_came_before_the_last_seconds_does_not_count() -> None:
    burst = [(0.0, 1_000_000_000)]
    assert rate_of(burst, 0.0, SPAN - 0.5) > 0
    assert rate_of(burst, 0.0, SPAN + 0.5) == 0
    # Ten minutes at a high rate, then a minute at a low one: the low one tells how long the rest takes.
    arrivals = [(each * 0.5, 50_000) for each in range(1200)]
    arrivals += [(600 + each * 0.5, 500) for each in range(120)]
    assert rate_of(arrivals, 0.0, 660.0) == pytest.approx(1000, rel=0.06)


def test_nothing_yet_is_no_rate() -> None:
    assert rate_of([], 5.0, 5.0) == 0
    assert rate_of([(5.0, 10)], 5.0, 5.0) == 0


@given(
    st.lists(st.tuples(st.floats(0, 5), st.integers(0, 1 << 40)), max_size=50),
    st.floats(0, 1e9),
    st.floats(0, 100),
)
def test_a_rate_is_never_more_than_all_that_came(
    gaps: list[tuple[float, int]], began: float, later: float
) -> None:
    recent, now = RecentBytes(), began
    for gap, size in gaps:
        now += gap
        recent.add(size, now)
        assert len(recent._steps) <= 2 * SPAN + 1
    now += later
    rate = recent_rate(recent.total(now), began, now)
    assert rate >= 0
    assert rate * (now - began) <= sum(size for _, size in gaps) * 1.01 or now - began > SPAN - 1
