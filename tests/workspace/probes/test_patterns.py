"""Patterns from anyone match what Python's `re` matches, and end within a number of steps."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelimage.errors import InvalidInput
from workspace.probes.patterns import Pattern
from workspace.probes.steps import StepBudget, TooManySteps

_ATOMS = [
    "a", "b", ".", "[ab]", "[^a]", "[a-c]", r"\d", r"\w", r"\S", r"\n", "^", "$", r"\b", "(a|b)", "(?:ab)",
    "(a*)", "(|a)",
]  # fmt: skip
_SIGNS = ["", "", "", "*", "+", "?", "{2}", "{0,2}", "{1,}", "{0}", "*?"]
_pieces = st.builds(str.__add__, st.sampled_from(_ATOMS), st.sampled_from(_SIGNS))
_sequences = st.lists(_pieces, min_size=1, max_size=5).map("".join)
_patterns = st.one_of(
    _sequences,
    st.builds(lambda one, sign, other: f"({one}){sign}|{other}", _sequences, st.sampled_from(_SIGNS), _sequences),
)  # fmt: skip


@given(_patterns, st.text("abc1 \n", max_size=10))
def test_it_finds_what_python_finds(pattern: str, text: str) -> None:
    try:
        expected = re.search(pattern, text) is not None
    except re.error:
        return
    assert Pattern(pattern).search(text, StepBudget()) == expected


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+$",
        "((a|aa)*)*b",
        "(.*){3}x{150}",
        f"[{'a' * 400}]{{200}}",
        "(a?){200}a{200}",
        "(x+x+)+y",
    ],
)
def test_a_pattern_made_to_take_long_ends(pattern: str) -> None:
    """Python's `re` takes longer than the universe has existed for some of these."""
    with pytest.raises(TooManySteps):
        Pattern(pattern).search("ax" * 20_000, StepBudget())


@pytest.mark.parametrize(
    "pattern",
    [
        "(", ")", "a{", "a{2", "a{5,2}", "a{201}", "*a", "a**", "[a", "[b-a]", "\\", r"\1", r"\p", "(?=a)", "(?i)a",
        "(?P<n>a)", "(" * 60 + ")" * 60, "(((a{10}){10}){10}){10}", "a" * 513, "a{99999999999999999999}", "a{\u0661}",
    ],
)  # fmt: skip
def test_what_isnt_supported_is_refused_when_it_is_read(pattern: str) -> None:
    with pytest.raises(InvalidInput, match="pattern"):
        Pattern(pattern)
