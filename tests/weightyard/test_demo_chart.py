"""The demonstration's bars: as long as what they stand for, and never nothing for something."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightyard.demo.chart import BAR, FetchBar, VariantBar, bar, fetches_chart, variants_chart


@given(st.integers(1, 10**12), st.data())
def test_a_bar_grows_with_its_value(most: int, data: st.DataObject) -> None:
    low, high = sorted(data.draw(st.tuples(st.integers(0, most), st.integers(0, most))))
    drawn = [bar(each, most).rstrip() for each in (low, high)]
    assert len(drawn[0]) <= len(drawn[1])
    assert all(len(bar(each, most)) == BAR for each in (low, high))
    assert [each == "" for each in drawn] == [low == 0, high == 0]


def test_the_longest_bar_is_full() -> None:
    assert bar(7, 7) == "█" * BAR
    assert bar(1, 2).rstrip() == "█" * (BAR // 2)
    assert bar(0, 0).strip() == ""


def test_a_picture_has_bytes_seconds_and_checks() -> None:
    lines = fetches_chart(
        [FetchBar("copied", 271_000_000, 0.25, 0), FetchBar("pulled again", 0, 0.1, 0)]
    ).splitlines()
    assert lines[1].split() == ["copied", "█" * BAR, "271", "MB", "0.2", "s", "none"]
    assert lines[2].split() == ["pulled", "again", "0", "B", "0.1", "s", "none"]


@pytest.mark.parametrize(
    ("quality", "shown"), [((1.036, 0.898), "x 1.036     90%"), (None, "not measured")]
)
def test_quality_is_shown_only_where_it_was_measured(
    quality: tuple[float, float] | None, shown: str
) -> None:
    text = variants_chart([VariantBar("int8", 163, quality, "only on CPUs with AVX-512")])
    assert shown in text
    assert "AVX-512" in text


def test_nothing_is_a_picture_too() -> None:
    assert len(fetches_chart([]).splitlines()) == len(variants_chart([]).splitlines()) == 1
