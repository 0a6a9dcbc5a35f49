"""Which peers to leave alone for a while: a penalty for each thing that went wrong, halved every minute. No IO.

A node whose penalty is above one isn't asked. So one broken connection costs a peer a few seconds, a lie minutes, and
whoever is bad again and again stays out; nobody stays out for ever.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

HALF_LIFE_SECONDS: Final = 60.0
_LIMIT: Final = 1.0
_MOST: Final = 32.0


class Offence(Enum):
    """What a peer did; the value is its penalty."""

    MISSED = 0.3
    UNREACHABLE = 1.2
    SLOW = 1.5
    REFUSED = 1.8
    STALLED = 2.0
    LIED = 8.0


@dataclass(frozen=True, slots=True)
class PeerPenalty:
    """A penalty as it was at `at`."""

    penalty: float = 0.0
    at: float = 0.0

    def after(self, now: float) -> float:
        """What is left of it."""
        return float(self.penalty * 0.5 ** (max(0.0, now - self.at) / HALF_LIFE_SECONDS))

    def with_offence(self, offence: Offence, now: float) -> PeerPenalty:
        return PeerPenalty(min(_MOST, self.after(now) + offence.value), now)

    def is_out(self, now: float) -> bool:
        return self.after(now) > _LIMIT

    def seconds_out(self, now: float) -> float:
        """For how long from now."""
        left = self.after(now)
        return HALF_LIFE_SECONDS * math.log2(left) if left > _LIMIT else 0.0


@dataclass
class Reputation:
    """What one node thinks of the others. Safe for threads. `ejected` is told of each peer that is put out, and why."""

    monotonic: Callable[[], float]
    ejected: Callable[[str, str], None] = lambda peer, why: None
    _standings: dict[str, PeerPenalty] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, peer: str, offence: Offence) -> None:
        """Count an offence."""
        now = self.monotonic()
        with self._lock:
            before = self._standings.get(peer, PeerPenalty())
            after = self._standings[peer] = before.with_offence(offence, now)
        if after.is_out(now) and not before.is_out(now):
            self.ejected(peer, offence.name.lower())

    def is_out(self, peer: str) -> bool:
        """Whether to leave a peer alone now."""
        with self._lock:
            return self._standings.get(peer, PeerPenalty()).is_out(self.monotonic())

    def outs(self) -> dict[str, float]:
        """Who is left alone, and for how many seconds more."""
        now = self.monotonic()
        with self._lock:
            return {p: s.seconds_out(now) for p, s in self._standings.items() if s.is_out(now)}
