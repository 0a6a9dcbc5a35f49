"""Numbers from outside are bounded before they cost anything."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelimage.bounds import clamp, parse_count, positive


@given(st.integers(0, 10**15))
def test_counts(number: int) -> None:
    assert parse_count(str(number)) == number
    assert parse_count(f"000{number}") == number
    assert parse_count(str(number), most=number) == number
    assert parse_count(str(number + 1), most=number) is None


@pytest.mark.parametrize(
    "text", ["", "-1", "+1", "1.0", " 1", "1e3", "\u00b2", "\u0661", "9" * 10**6, None, 1]
)
def test_what_is_no_count(text: object) -> None:
    assert parse_count(text) is None


@given(st.one_of(st.integers(), st.floats(allow_nan=False)))
def test_clamped_numbers_stay_within_bounds(number: float) -> None:
    assert 1 <= clamp(number, 1, 100) <= 100
    if 1 <= number <= 100:
        assert clamp(number, 1, 100) == number


def test_huge_and_odd_numbers() -> None:
    assert clamp(10**400, 0, 60) == 60
    assert clamp(-(10**400), 0, 60) == 0
    assert clamp(math.inf, 0, 60) == 60
    with pytest.raises(ValueError, match="NaN"):
        clamp(math.nan, 0, 60)
    for odd in (None, "1", True, [], {}):
        with pytest.raises(TypeError):
            clamp(odd, 0, 60)


@given(st.integers())
def test_positive_whole_numbers(number: int) -> None:
    assert positive(number) == (number if 0 < number <= 10**15 else 0)


@pytest.mark.parametrize("value", [True, 1.0, "1", None, [1]])
def test_what_is_no_whole_number_counts_as_none(value: object) -> None:
    assert positive(value) == 0
