"""How many examples a property test draws, where the profile's own number is too many or too few for it."""

from __future__ import annotations

from hypothesis import settings


def examples(of_hundred: int) -> int:
    """So many where the profile draws a hundred, as `dev` and `ci` do; `fast` draws fewer of each."""
    return max(1, of_hundred * settings().max_examples // 100)
