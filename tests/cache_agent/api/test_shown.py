"""Sizes and times for people, as `kubectl get` shows them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_agent.api.kube_objects import shown_bytes, shown_seconds

SCALE = {"": 1, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0"), (1023, "1023"), (1024, "1.0Ki"), (16 * 10**9, "15Gi"), (1 << 30, "1.0Gi"), ((1 << 30) - 1, "1.0Gi"),
     (2 * 10**12, "1.8Ti"), (1 << 52, "4096Ti")],
)  # fmt: skip
def test_sizes(count: int, shown: str) -> None:
    assert shown_bytes(count) == shown


@given(st.integers(0, 1 << 60))
def test_a_size_is_short_and_off_by_a_twentieth_at_most(count: int) -> None:
    match = re.fullmatch(r"([0-9.]+)(|Ki|Mi|Gi|Ti)", shown_bytes(count))
    assert match is not None
    assert abs(float(match[1]) * SCALE[match[2]] - count) <= count / 20 + 0.5
    assert len(match[1]) <= 4 or match[2] == "Ti"


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0s"),
        (59, "59s"),
        (200, "3m20s"),
        (7200, "2h"),
        (7260, "2h1m"),
        (86_400 * 4 + 7200, "4d2h"),
        (86_405, "1d"),
    ],
)
def test_times(count: int, shown: str) -> None:
    assert shown_seconds(count) == shown
