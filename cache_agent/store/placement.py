"""Which root a model goes to. Pure: facts in, a choice out.

A model is whole on one root, since its directory is made of hard links. So it is chosen once, before a byte moves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RootFacts:
    """What placing needs to know of one root, in bytes.

    `held`: what of the model is there already, or on its way there. `home`: the model itself is there, or an earlier
    pull of it left its journal there.
    """

    headroom: int
    evictable: int
    held: int = 0
    home: bool = False

    def left(self, size: int) -> int:
        """What stays free after the rest of a model of `size` bytes has come."""
        return self.headroom - (size - self.held)


def choose_root(roots: Sequence[RootFacts], size: int) -> int:
    """The index of the root for a model of `size` bytes.

    Its home if it has one; else where it fits, else where it fits after evicting; among those, where most stays free,
    with what is shared counted as a gain: elsewhere it would be on the node twice. When it fits nowhere, the root that
    comes nearest: there the refusal says what would have to go.
    """

    def rank(index: int) -> tuple[bool, bool, bool, int, int]:
        root = roots[index]
        left = root.left(size)
        return (root.home, left >= 0, left + root.evictable >= 0, left + root.held, -index)

    return max(range(len(roots)), key=rank)
