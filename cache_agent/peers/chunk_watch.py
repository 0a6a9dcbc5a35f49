"""Polls the peers' chunk lists of each file, with adaptive intervals. One per pull; thread-safe.

It has no thread: the worker that decides on a chunk first refreshes outdated lists. A peer whose list changes is polled
again soon, an unchanged one less and less often, one with the complete file never again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import Final

from cache_agent.peers.peer_client import PeerLink
from cache_agent.peers.reputation import Offence, Reputation
from cache_agent.peers.values import Have, Member
from modelimage.digest import Digest
from modelimage.errors import AccessDenied, NotFound, RateLimited, RemoteRefused, Unreachable

_SOON: Final = 0.1
# Each node polls each other one: a fixed interval would make the load grow with the square of the nodes.
_SOON_PER_MEMBER: Final = 0.005
_LATEST: Final = 1.0
_LATEST_ABSENT: Final = 2.0
_SLOWER: Final = 1.5
# A peer counts as stalled after this many times its usual interval between two signs of progress.
_GAPS: Final = 8.0
_LEAST_SHARE: Final = 0.5


@dataclass(frozen=True, slots=True)
class FileName:
    """A file as named between peers: sha256, identity of its record's claims, number of chunks."""

    sha256: Digest
    identity: Digest
    count: int


@dataclass(slots=True)
class PeerChunkList:
    """One peer's last chunk list of one file. Times are on the monotonic clock.

    `answered`: last response, `again`: next poll, `progressed`: last change, `gap`: usual seconds between changes.
    """

    answered: float = float("-inf")
    again: float = float("-inf")
    interval: float = _SOON
    have: Have | None = None
    progressed: float = float("-inf")
    gap: float = 0.0
    polling: bool = False

    def stall_timeout(self, most: float) -> float:
        """How many seconds it may show no progress: adapted to its usual interval, at most `most`."""
        return min(most, max(most * _LEAST_SHARE, _GAPS * self.gap)) if self.gap else most


def record_answer(view: PeerChunkList, have: Have | None, now: float, soon: float) -> None:
    """Record a response in `view`; `have` None: the peer doesn't have the file. No other effect."""
    news = have != view.have
    if have is not None and news:
        if view.have is not None:
            # Decays slowly: a quick burst must not make the following normal interval look like a stall.
            view.gap = max(now - view.progressed, view.gap / 2)
        view.progressed = now
    latest = _LATEST if have is not None else _LATEST_ABSENT
    view.interval = soon if news else min(max(latest, soon), view.interval * _SLOWER)
    view.have, view.answered = have, now
    view.again = float("inf") if have is not None and have.complete else now + view.interval


@dataclass
class ChunkListPoller:
    """Peers' chunk lists for one pull's files. `stall_timeout`: seconds without progress until a peer is ignored."""

    members: Callable[[], Sequence[Member]]
    link: PeerLink
    reputation: Reputation
    executor: Executor
    monotonic: Callable[[], float]
    stall_timeout: float
    learn_zone: Callable[[str, str], None] = lambda peer, zone: None
    _views: dict[tuple[str, Digest], PeerChunkList] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def live(self) -> list[Member]:
        """The members that aren't ejected now."""
        return [each for each in self.members() if not self.reputation.is_out(each.id)]

    def refresh(self, file: FileName, since: float | None = None) -> None:
        """Poll the peers that are due; with `since`, all peers not polled after that time. Blocks for the responses."""
        due = list(self._due(file, since))
        if len(due) == 1:
            self._ask(due[0], file)
        elif due:
            list(self.executor.map(lambda peer: self._ask(peer, file), due))

    def views(self, file: FileName) -> list[tuple[Member, Have, bool]]:
        """The live peers that have or fetch a file: (member, its chunks, whether it made progress recently)."""
        now = self.monotonic()
        # Before the lock: reputations have their own, and no thread holds both.
        live = self.live()
        with self._lock:
            known = [(member, self._views.get((member.id, file.identity))) for member in live]
            return [
                (member, view.have, now - view.progressed < view.stall_timeout(self.stall_timeout))
                for member, view in known
                if view is not None and view.have is not None
            ]

    def doubt(self, peer: str, file: FileName, index: int) -> None:
        """Record that a peer lacked a chunk of its list, and poll it soon. A small offence: lists may be outdated."""
        with self._lock:
            view = self._views.get((peer, file.identity))
            if view is not None and view.have is not None:
                view.have = replace(view.have, have=view.have.have & ~(1 << index))
                view.again, view.interval = self.monotonic() + _SOON, _SOON
        self.reputation.note(peer, Offence.MISSED)

    def _due(self, file: FileName, since: float | None) -> Iterator[str]:
        now = self.monotonic()
        live = self.live()
        with self._lock:
            for member in live:
                view = self._views.setdefault((member.id, file.identity), PeerChunkList())
                wanted = view.again <= now if since is None else view.answered <= since
                complete = view.have is not None and view.have.complete
                # With `since` also while another thread polls: that response may predate this node's announcement.
                if wanted and not complete and (not view.polling or since is not None):
                    view.polling = True
                    yield member.id

    def _ask(self, peer: str, file: FileName) -> None:
        have, offence = self._answer(peer, file)
        now = self.monotonic()
        soon = max(_SOON, _SOON_PER_MEMBER * len(self.members()))
        with self._lock:
            view = self._views[peer, file.identity]
            view.polling = False
            record_answer(view, have, now, soon)
        if offence is not None:
            self.reputation.note(peer, offence)
        elif have is not None:
            self.learn_zone(peer, have.zone)

    def _answer(self, peer: str, file: FileName) -> tuple[Have | None, Offence | None]:
        try:
            have = self.link.have(peer, file.sha256, file.identity)
        # No offence: a peer without the file, or a busy one, does nothing wrong.
        except (NotFound, RateLimited):
            return None, None
        except AccessDenied:
            return None, Offence.REFUSED
        except RemoteRefused:
            return None, Offence.LIED
        except Unreachable:
            return None, Offence.UNREACHABLE
        # The identity covers the chunk digests, so an honest peer has the same number of chunks.
        return (have, None) if have.count == file.count else (None, Offence.LIED)
