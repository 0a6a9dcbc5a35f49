"""Quantities are written as the API server writes them."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workspace.render.quantities import canonical, total_bytes

SUFFIXES = {
    "": Fraction(1), "m": Fraction(1, 1000), "u": Fraction(1, 10**6), "n": Fraction(1, 10**9),
    "k": Fraction(10**3), "M": Fraction(10**6), "G": Fraction(10**9), "T": Fraction(10**12),
    "P": Fraction(10**15), "E": Fraction(10**18),
    "Ki": Fraction(1 << 10), "Mi": Fraction(1 << 20), "Gi": Fraction(1 << 30), "Ti": Fraction(1 << 40),
    "Pi": Fraction(1 << 50), "Ei": Fraction(1 << 60),
}  # fmt: skip
QUANTITIES = st.builds(
    lambda number, suffix: f"{number}{suffix}",
    st.one_of(
        st.integers(0, 10**6),
        st.decimals(0, 10**4, places=3, allow_nan=False).map(lambda d: f"{d:f}"),
    ),
    st.sampled_from(sorted(SUFFIXES)),
)


def meaning(text: str) -> Fraction:
    number = text.rstrip("KMGTPEikmun")
    return Fraction(number) * SUFFIXES[text[len(number) :]]


@pytest.mark.parametrize(
    ("given_text", "stored"),
    [
        # What a real server answered for each of these (apimachinery's quantity_test.go has the same).
        ("1024Mi", "1Gi"), ("0.5", "500m"), ("2000m", "2"), ("1.5Gi", "1536Mi"), ("1500Mi", "1500Mi"),
        ("1000", "1k"), ("512", "512"), ("1e3", "1e3"), ("0", "0"), ("0.0", "0"), ("100m", "100m"),
        ("0.5Ki", "512"), ("80G", "80G"), ("12e6", "12e6"), ("not one", "not one"), ("", ""),
    ],
)  # fmt: skip
def test_known_forms(given_text: str, stored: str) -> None:
    assert canonical(given_text) == stored


@given(QUANTITIES)
def test_canonical_form_is_stable(text: str) -> None:
    assert canonical(canonical(text)) == canonical(text)


@given(QUANTITIES)
def test_canonical_form_means_the_same_up_to_a_billionth(text: str) -> None:
    difference = meaning(canonical(text)) - meaning(text)
    assert 0 <= difference < Fraction(1, 10**9)


@given(st.integers(0, 1 << 50))
def test_bytes_are_rounded_up_to_mebibytes(count: int) -> None:
    assert 0 <= meaning(total_bytes(count)) - count < 1 << 20
