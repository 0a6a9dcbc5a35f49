"""The events of a node, for metrics, logs and traces. The base class ignores all of them.

Methods are called in the thread where the event happened, so implementations must be quick and must not raise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PullEnd:
    """The end of a pull: `outcome` is `done` or the error's class; `by_source` holds (tier, source, bytes).

    `phases`: each phase's name and its start, in seconds since the pull's start.
    """

    image: str
    outcome: str
    seconds: float
    reused: int
    by_source: Sequence[tuple[str, str, int]]
    message: str = ""
    phases: Sequence[tuple[str, float]] = ()


class Events:
    """A listener. Subclasses override the events that they use."""

    def pull_started(self, image: str) -> None:
        """A pull began."""

    def pull_ended(self, end: PullEnd) -> None:
        """A pull succeeded or failed."""

    def evicted(self, image: str, freed: int, why: str) -> None:
        """A model was evicted for space."""

    def refused(self, need: int) -> None:
        """A reservation of `need` bytes was refused for lack of space."""

    def scrubbed(self, size: int) -> None:
        """The scrub read and verified `size` bytes."""

    def damaged(self, file: str, detail: str) -> None:
        """A stored file was found damaged."""

    def repaired(self, file: str, chunks: int) -> None:
        """A damaged file was repaired; `chunks` of it were fetched again."""

    def warmed(self, brought: int, found: int) -> None:
        """A model was read into memory: `brought` bytes; `found` bytes were there already."""

    def expired(self, lease: str, holder: str) -> None:
        """A lease ended because its holder is gone."""

    def upkeep_failed(self, detail: str) -> None:
        """A round of maintenance failed in part; the next round tries again."""

    def unshelved(self, image: str, detail: str) -> None:
        """A model was pulled, but caching the manifests that a container runtime requests failed."""

    def peer_sent(self, peer: str, size: int) -> None:
        """`size` bytes were sent to another node."""

    def peer_ejected(self, peer: str, why: str) -> None:
        """A peer was temporarily ejected."""

    def peer_refused(self, why: str) -> None:
        """A request to the peers server was refused; `why`: signature, clock or replayed."""


class Broadcast(Events):
    """Passes every event to several listeners."""

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
