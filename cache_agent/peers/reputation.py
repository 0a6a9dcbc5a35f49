"""Ejects misbehaving peers for a while: each offence adds a penalty, and penalties halve every minute. No IO.

A peer with a penalty above 1 gets no requests. One broken connection ejects a peer for seconds, a wrong chunk for
minutes; repeated offences keep it ejected, but never for ever.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

HALF_LIFE_SECONDS: Final = 60.0
_LIMIT: Final = 1.0
_FORGOTTEN: Final = 0.001
# A cap, so that repeated offences can't eject a peer for more than five half-lives.
_MOST: Final = 32.0


class Offence(Enum):
    """A peer's offence; its value is the penalty."""

    # Below the limit on its own: a chunk list may be outdated.
    MISSED = 0.3
    UNREACHABLE = 1.2
    SLOW = 1.5
    REFUSED = 1.8
    STALLED = 2.0
    LIED = 8.0


@dataclass(frozen=True, slots=True)
class PeerPenalty:
    """A penalty at the time `at`, in seconds."""

    penalty: float = 0.0
    at: float = 0.0

    def after(self, now: float) -> float:
        """The penalty left at `now`."""
        return float(self.penalty * 0.5 ** (max(0.0, now - self.at) / HALF_LIFE_SECONDS))

    def with_offence(self, offence: Offence, now: float) -> PeerPenalty:
        return PeerPenalty(min(_MOST, self.after(now) + offence.value), now)

    def is_out(self, now: float) -> bool:
        return self.after(now) > _LIMIT


@dataclass
class Reputation:
    """The peers' penalties, as one node sees them. Thread-safe. `ejected(peer, reason)`: called at each ejection."""

    monotonic: Callable[[], float]
    ejected: Callable[[str, str], None] = lambda peer, why: None
    _penalties: dict[str, PeerPenalty] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, peer: str, offence: Offence) -> None:
        """Add an offence's penalty; calls `ejected` if it ejects the peer."""
        now = self.monotonic()
        with self._lock:
            before = self._penalties.get(peer, PeerPenalty())
            after = before.with_offence(offence, now)
            # Nodes come and go: who did nothing for long needs no entry.
            self._penalties = {
                each: penalty
                for each, penalty in self._penalties.items()
                if penalty.after(now) > _FORGOTTEN
            }
            self._penalties[peer] = after
        # Outside the lock: the callback writes events.
        if after.is_out(now) and not before.is_out(now):
            self.ejected(peer, offence.name.lower())

    def known(self) -> int:
        """How many peers have a penalty."""
        with self._lock:
            return len(self._penalties)

    def is_out(self, peer: str) -> bool:
        """Whether a peer is ejected now."""
        with self._lock:
            return self._penalties.get(peer, PeerPenalty()).is_out(self.monotonic())
