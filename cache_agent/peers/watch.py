"""What the peers last said of each file, asked again as often as it is of use. One per pull; safe for threads.

There is no thread of its own: whoever is about to decide on a chunk refreshes what has grown old first. A peer whose
answers change is asked again soon, one without news less and less often, one that has all of the file never.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import Final

from cache_agent.peers.client import PeerLink
from cache_agent.peers.reputation import Offence, Reputation
from cache_agent.peers.values import Have, Member
from modelimage.digest import Digest
from modelimage.errors import AccessDenied, NotFound, RateLimited, RemoteRefused, Unreachable

_SOON: Final = 0.1
_SOON_PER_MEMBER: Final = 0.005
_LATEST: Final = 1.0
_LATEST_ABSENT: Final = 2.0
_SLOWER: Final = 1.5
# A peer that used to show progress every so often is given up for slow after so many times that.
_GAPS: Final = 8.0
_LEAST_PATIENCE: Final = 0.5


@dataclass(frozen=True, slots=True)
class FileName:
    """A file as peers name it: sha256, identity of its record's claims, number of chunks."""

    sha256: Digest
    identity: Digest
    count: int


@dataclass(slots=True)
class View:
    """What one peer said of one file. Times are on the monotonic clock."""

    asked: float = float("-inf")
    again: float = float("-inf")
    interval: float = _SOON
    have: Have | None = None
    progressed: float = float("-inf")
    gap: float = 0.0
    asking: bool = False

    def patience(self, most: float) -> float:
        """For how long it may show no progress: adapted to how often it did, `most` at most."""
        return min(most, max(most * _LEAST_PATIENCE, _GAPS * self.gap)) if self.gap else most


def heard(view: View, have: Have | None, now: float, soon: float) -> None:
    """Take an answer down; None: it takes no part in the file. Pure but for `view`."""
    news = have != view.have
    if have is not None and news:
        if view.have is not None:
            view.gap = max(now - view.progressed, view.gap / 2)
        view.progressed = now
    latest = _LATEST if have is not None else _LATEST_ABSENT
    view.interval = soon if news else min(max(latest, soon), view.interval * _SLOWER)
    view.have, view.asked = have, now
    view.again = float("inf") if have is not None and have.complete else now + view.interval


@dataclass
class Watching:
    """The peers' words on the files of one pull. `patience`: seconds without progress before one counts for nothing."""

    members: Callable[[], Sequence[Member]]
    link: PeerLink
    reputation: Reputation
    executor: Executor
    monotonic: Callable[[], float]
    patience: float
    learn_zone: Callable[[str, str], None] = lambda peer, zone: None
    _views: dict[tuple[str, Digest], View] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def live(self) -> list[Member]:
        """The members that aren't left alone now."""
        return [each for each in self.members() if not self.reputation.is_out(each.id)]

    def refresh(self, file: FileName, since: float | None = None) -> None:
        """Ask whom it is time to ask; with `since`, everyone who wasn't asked after that."""
        due = list(self._due(file, since))
        if len(due) == 1:
            self._ask(due[0], file)
        elif due:
            list(self.executor.map(lambda peer: self._ask(peer, file), due))

    def views(self, file: FileName) -> list[tuple[Member, Have, bool]]:
        """Who takes part in a file: what it has of it, and whether it made progress lately."""
        now = self.monotonic()
        live = self.live()
        with self._lock:
            known = [(member, self._views.get((member.id, file.identity))) for member in live]
            return [
                (member, view.have, now - view.progressed < view.patience(self.patience))
                for member, view in known
                if view is not None and view.have is not None
            ]

    def doubt(self, peer: str, file: FileName, index: int) -> None:
        """It hadn't got a chunk that it said it had: ask it again. It may be late by a moment; not again and again."""
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
                view = self._views.setdefault((member.id, file.identity), View())
                wanted = view.again <= now if since is None else view.asked <= since
                complete = view.have is not None and view.have.complete
                if wanted and not complete and (not view.asking or since is not None):
                    view.asking = True
                    yield member.id

    def _ask(self, peer: str, file: FileName) -> None:
        have, offence = self._answer(peer, file)
        now = self.monotonic()
        soon = max(_SOON, _SOON_PER_MEMBER * len(self.members()))
        with self._lock:
            view = self._views[peer, file.identity]
            view.asking = False
            heard(view, have, now, soon)
        if offence is not None:
            self.reputation.note(peer, offence)
        elif have is not None:
            self.learn_zone(peer, have.zone)

    def _answer(self, peer: str, file: FileName) -> tuple[Have | None, Offence | None]:
        try:
            have = self.link.have(peer, file.sha256, file.identity)
        except (NotFound, RateLimited):
            return None, None
        except AccessDenied:
            return None, Offence.REFUSED
        except RemoteRefused:
            return None, Offence.LIED
        except Unreachable:
            return None, Offence.UNREACHABLE
        return (have, None) if have.count == file.count else (None, Offence.LIED)
