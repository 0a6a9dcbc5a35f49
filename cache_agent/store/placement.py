"""Chooses the root of a model. Pure: facts in, a choice out.

A model lies wholly on one root, since its directory is made of hard links: the root is chosen before the first byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RootFacts:
    """Facts about one root that placement needs, in bytes.

    `held`: bytes of the model already there or being downloaded there. `home`: the model is
    there, or the journal of an earlier pull.
    """

    headroom: int
    evictable: int
    held: int = 0
    home: bool = False

    def left(self, size: int) -> int:
        """Space left once the rest of a model of `size` bytes is there."""
        return self.headroom - (size - self.held)


def choose_root(roots: Sequence[RootFacts], size: int) -> int:
    """The index of the root for a model of `size` bytes.

    Its home if it has one; else where it fits, else where it fits after eviction; among those, where most stays free,
    counting shared bytes as a gain, since elsewhere they would be stored twice. When it fits nowhere, the root that
    comes nearest: its error then names what would have to go.
    """

    def rank(index: int) -> tuple[bool, bool, bool, int, int]:
        root = roots[index]
        left = root.left(size)
        # -index: the first among equals, for a deterministic choice.
        return (root.home, left >= 0, left + root.evictable >= 0, left + root.held, -index)

    return max(range(len(roots)), key=rank)
