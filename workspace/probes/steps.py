"""A budget of steps for checking one answer: what tenants wrote must not cost the controller more than that."""

from __future__ import annotations

from typing import Final

from modelimage.errors import InvalidInput

# At most 0.1 s of checking. A pattern of 20 characters over an answer of 1,000 takes a fifth of it.
MOST_STEPS: Final = 50_000


class TooManySteps(InvalidInput):
    """Checking an answer takes longer than it may."""


class StepBudget:
    """Counts down. `spend` raises TooManySteps when nothing is left."""

    def __init__(self, most: int = MOST_STEPS) -> None:
        self._left = most

    def spend(self, count: int = 1) -> None:
        self._left -= count
        if self._left < 0:
            raise TooManySteps("the expectation takes too many steps to check")
