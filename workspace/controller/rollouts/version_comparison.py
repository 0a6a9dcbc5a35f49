"""Keeps what the servers of two versions counted while a new one has one weight. Pure: readings in, a result out.

Counts are of processes, which may end: what one counted stays, and what the next counts is added to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from workspace.analysis import (
    AnalysisResult,
    Judgement,
    Outcome,
    ServerTotals,
    judge,
    total,
)
from workspace.rollout_spec import Analysis

# Requests of a server that tell of its empty caches, not of its version.
WARM_UP: Final = 3
# A server's counts by its pod's uid; None for one that couldn't be read.
Readings = Mapping[str, ServerTotals | None]


@dataclass(slots=True)
class VersionCounts:
    """What the servers of one version counted since the comparison began, by their pods' uids; or had `before`.

    `ended` is what processes counted that have ended since.
    """

    begun: dict[str, ServerTotals] = field(default_factory=dict)
    last: dict[str, ServerTotals] = field(default_factory=dict)
    ended: ServerTotals = field(default_factory=ServerTotals)
    before: ServerTotals | None = None

    def add(self, readings: Readings) -> bool:
        """Take readings. Returns whether one of the servers has started again since its last."""
        restarted = False
        for uid, counts in readings.items():
            if counts is None:
                continue
            known = self.last.get(uid)
            if known is not None and not counts.continues(known):
                restarted = True
                self._end(uid)
            # Kept after the server is gone: its requests were answered.
            self.last[uid] = counts
            if uid not in self.begun and counts.requests >= WARM_UP:
                self.begun[uid] = counts
        return restarted

    def total(self) -> ServerTotals:
        """All that was counted."""
        if self.before is not None:
            return self.before
        return total(
            (self.ended, *(self.last[uid].since(each) for uid, each in self.begun.items()))
        )

    def leave_out(self) -> None:
        """Count nothing until the next reading."""
        self.ended = self.before or self.total()
        self.begun.clear()
        self.last.clear()

    def _end(self, uid: str) -> None:
        """Keep what a process counted whose container has started another since: that one counts from zero."""
        begun, last = self.begun.pop(uid, None), self.last.pop(uid)
        if begun is not None:
            self.ended = total((self.ended, last.since(begun)))


@dataclass(slots=True)
class VersionComparison:
    """One comparison: of what is counted while a new version has one weight, `began` when it had reached that.

    Times are seconds of the loop's clock. `step` is the rollout's at the last reading. After a restart the time begins
    again, since what the process counted last is lost.
    """

    window: str
    began: float
    step: int = 0
    stable: VersionCounts = field(default_factory=VersionCounts)
    candidate: VersionCounts = field(default_factory=VersionCounts)
    restarted: bool = False
    unread: int = 0
    missing: str = ""

    def add(self, stable: Readings, candidate: Readings, now: float) -> None:
        """Take one reading of every ready server of both versions."""
        # Both take their readings: after a restart in the first, `or` would leave the second's out.
        both = (self.stable.add(stable), self.candidate.add(candidate))
        if any(both):
            self.restarted, self.began = True, now
        self.unread = sum(each is None for each in (*stable.values(), *candidate.values()))
        self.missing = "" if candidate else "the new version"
        if not stable and self.stable.before is None:
            self.missing = "the version that serves"

    def leave_out(self) -> None:
        """Count nothing until the next reading: what servers answer now isn't asked by users."""
        self.stable.leave_out()
        self.candidate.leave_out()

    def result(self, settings: Analysis, now: float) -> AnalysisResult:
        """What the counts say; nothing, unless all servers could be read."""
        if self.missing:
            verdict = Judgement(Outcome.INCONCLUSIVE, f"No server of {self.missing} is ready.")
        elif self.unread:
            verdict = Judgement(Outcome.INCONCLUSIVE, "The metrics of some servers can't be read.")
        else:
            verdict = judge(self.stable.total(), self.candidate.total(), settings)
        return AnalysisResult(self.window, now - self.began, verdict, self.restarted)
