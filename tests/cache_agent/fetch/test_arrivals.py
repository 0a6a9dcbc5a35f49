"""The rate of the last seconds, and silences."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_agent.fetch.arrivals import SILENCE, SPAN, Arrivals


def steady(arrivals: Arrivals, *, start: float, end: float, rate: int) -> None:
    for tenth in range(int(start * 10), int(end * 10) + 1):
        arrivals.add(rate // 10, tenth / 10)


@pytest.mark.parametrize("now", [1.0, 3.0, 9.7, 10.1, 60.0, 3601.3])
def test_a_steady_stream_has_its_rate_at_any_time(now: float) -> None:
    arrivals = Arrivals()
    steady(arrivals, start=0.0, end=now, rate=1000)
    assert arrivals.rate(now) == pytest.approx(1000, rel=0.11)


def test_what_came_before_the_last_seconds_does_not_count() -> None:
    """Ten minutes at a high rate, then some seconds at a low one: the low one tells how long the rest takes."""
    arrivals = Arrivals()
    steady(arrivals, start=0.0, end=600.0, rate=100_000)
    steady(arrivals, start=600.1, end=600.0 + SPAN, rate=1000)
    assert arrivals.rate(600.0 + SPAN) == pytest.approx(1000, rel=0.06)


def test_a_silence_has_no_rate_and_ends_what_was_measured() -> None:
    arrivals = Arrivals()
    steady(arrivals, start=0.0, end=30.0, rate=1000)
    assert arrivals.rate(30.0 + SILENCE / 2) > 500
    assert arrivals.rate(30.0 + SILENCE + 0.1) == 0
    assert arrivals.quiet(30.0 + SILENCE + 0.1) == pytest.approx(SILENCE + 0.1)
    # As before it, not an average with it.
    steady(arrivals, start=45.0, end=47.0, rate=1000)
    assert arrivals.rate(47.0) == pytest.approx(1000, rel=0.11)
    assert arrivals.quiet(47.0) == 0


def test_the_first_moment_tells_nothing() -> None:
    arrivals = Arrivals()
    assert (arrivals.rate(5.0), arrivals.quiet(5.0)) == (0, None)
    arrivals.add(1 << 20, 5.0)
    assert (arrivals.rate(5.01), arrivals.quiet(5.01)) == (0, pytest.approx(0.01))
    assert arrivals.rate(6.0) > 0


@given(
    st.lists(st.tuples(st.floats(0, 20), st.integers(0, 1 << 40)), max_size=50),
    st.floats(0, 1e9),
    st.floats(0, 100),
)
def test_a_rate_is_never_more_than_what_came_in_the_time_that_it_covers(
    gaps: list[tuple[float, int]], began: float, later: float
) -> None:
    arrivals, now, came = Arrivals(), began, []
    for gap, size in gaps:
        now += gap
        arrivals.add(size, now)
        came.append((now, size))
        assert len(arrivals._steps) <= 2 * SPAN
    now += later
    lately = sum(size for at, size in came if at >= now - SPAN)
    # It covers half a second at least.
    assert 0 <= arrivals.rate(now) <= 2 * lately
