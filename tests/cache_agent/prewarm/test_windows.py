"""Maintenance windows: open when they say, over midnight, over weekends and over changes of the clock."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_agent.api.cached_model import DAYS, Window
from cache_agent.prewarm.windows import state_at
from modelimage.errors import InvalidInput

BERLIN = ZoneInfo("Europe/Berlin")
TIMES = st.builds(
    lambda h, m: f"{h:02}:{m:02}", st.integers(0, 23), st.sampled_from([0, 1, 30, 59])
)


@st.composite
def windows(draw: st.DrawFn) -> Window:
    start = draw(TIMES)
    return Window(
        start=start,
        end=draw(TIMES.filter(lambda end: end != start)),
        days=tuple(draw(st.lists(st.sampled_from(DAYS), min_size=1, unique=True))),
        time_zone=draw(st.sampled_from(["UTC", "Europe/Berlin", "Asia/Kathmandu"])),
    )


@given(windows(), st.floats(1_700_000_000, 1_900_000_000))
def test_the_next_change_lies_ahead_and_changes_the_answer(window: Window, now: float) -> None:
    is_open, changes = state_at(window, now)
    assert changes > now
    assert state_at(window, changes)[0] is not is_open
    assert state_at(window, (now + changes) / 2)[0] is is_open


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN).timestamp()


def test_a_window_over_midnight_belongs_to_the_day_on_which_it_starts() -> None:
    window = Window(start="22:00", end="04:00", days=("Fri",), time_zone="Europe/Berlin")
    assert state_at(window, at("2027-01-16T03:59")) == (True, at("2027-01-16T04:00"))  # Saturday
    assert state_at(window, at("2027-01-16T22:00")) == (False, at("2027-01-22T22:00"))


def test_a_time_of_day_stays_when_the_clocks_change() -> None:
    window = Window(start="01:00", end="05:00", time_zone="Europe/Berlin")
    assert state_at(window, at("2027-03-28T01:00")) == (True, at("2027-03-28T05:00"))
    assert at("2027-03-28T05:00") - at("2027-03-28T01:00") == 3 * 3600


def test_an_unknown_zone_is_told() -> None:
    with pytest.raises(InvalidInput, match="Atlantis"):
        state_at(Window(start="01:00", end="02:00", time_zone="Atlantis/Main"), 0.0)
