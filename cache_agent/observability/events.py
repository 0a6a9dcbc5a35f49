"""What happens on a node, for whoever counts or logs it. The base class is told everything and does nothing.

Called in the thread where it happened; implementations are quick and don't raise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PullEnd:
    """How a pull ended: `outcome` is `done` or the error's class; bytes by (tier, source).

    `phases`: what it went through, each with the seconds after its start at which it began.
    """

    image: str
    outcome: str
    seconds: float
    reused: int
    by_source: Sequence[tuple[str, str, int]]
    message: str = ""
    phases: Sequence[tuple[str, float]] = ()


class Events:
    """Subclasses override what they care about."""

    def pull_started(self, image: str) -> None:
        """A pull began."""

    def pull_ended(self, end: PullEnd) -> None:
        """A pull ended, well or not."""

    def evicted(self, image: str, freed: int, why: str) -> None:
        """A model was evicted for space."""

    def refused(self, need: int) -> None:
        """A reservation was refused for want of space."""

    def scrubbed(self, size: int) -> None:
        """So many bytes were read again and compared."""

    def damaged(self, file: str, detail: str) -> None:
        """A stored file isn't what it was."""

    def repaired(self, file: str, chunks: int) -> None:
        """A damaged file is whole again; `chunks` were fetched for it."""

    def warmed(self, brought: int, found: int) -> None:
        """A model was brought into memory: so many bytes of it, beside those that were found there."""

    def expired(self, lease: str, holder: str) -> None:
        """A lease ended because its holder is gone."""

    def upkeep_failed(self, detail: str) -> None:
        """A round of upkeep couldn't do all that was due; the next one tries again."""

    def unshelved(self, image: str, detail: str) -> None:
        """A model was pulled, but not all that a container runtime would ask for beside it."""

    def peer_sent(self, peer: str, size: int) -> None:
        """So many bytes were sent to another node."""

    def peer_ejected(self, peer: str, why: str) -> None:
        """A node is left alone for a while."""

    def peer_refused(self, why: str) -> None:
        """A request at the peers' port was refused: its signature, its clock, or its coming twice."""


class Broadcast(Events):
    """Tells several listeners."""

    def __init__(self, listeners: Sequence[Events]) -> None:
        self._listeners = listeners

    def pull_started(self, image: str) -> None:
        for each in self._listeners:
            each.pull_started(image)

    def pull_ended(self, end: PullEnd) -> None:
        for each in self._listeners:
            each.pull_ended(end)

    def evicted(self, image: str, freed: int, why: str) -> None:
        for each in self._listeners:
            each.evicted(image, freed, why)

    def refused(self, need: int) -> None:
        for each in self._listeners:
            each.refused(need)

    def scrubbed(self, size: int) -> None:
        for each in self._listeners:
            each.scrubbed(size)

    def damaged(self, file: str, detail: str) -> None:
        for each in self._listeners:
            each.damaged(file, detail)

    def repaired(self, file: str, chunks: int) -> None:
        for each in self._listeners:
            each.repaired(file, chunks)

    def warmed(self, brought: int, found: int) -> None:
        for each in self._listeners:
            each.warmed(brought, found)

    def expired(self, lease: str, holder: str) -> None:
        for each in self._listeners:
            each.expired(lease, holder)

    def upkeep_failed(self, detail: str) -> None:
        for each in self._listeners:
            each.upkeep_failed(detail)

    def unshelved(self, image: str, detail: str) -> None:
        for each in self._listeners:
            each.unshelved(image, detail)

    def peer_sent(self, peer: str, size: int) -> None:
        for each in self._listeners:
            each.peer_sent(peer, size)

    def peer_ejected(self, peer: str, why: str) -> None:
        for each in self._listeners:
            each.peer_ejected(peer, why)

    def peer_refused(self, why: str) -> None:
        for each in self._listeners:
            each.peer_refused(why)
