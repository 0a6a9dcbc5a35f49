"""Formats a pull's progress, as shown by `kubectl describe pod`. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from cache_agent.fetch.values import PullSnapshot, PullState

# A rate over less time is meaningless.
_SHORTEST_SECONDS = 0.01
# Longer than a source under a cap, or one that is asked for the next range, says nothing.
_STILL_SECONDS = 10.0
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


@dataclass(frozen=True, slots=True)
class Watched:
    """A pull observed twice: `since` seconds ago it had `before` bytes."""

    snapshot: PullSnapshot
    before: int
    since: float


def stands_still(snapshot: PullSnapshot) -> bool:
    """Whether no byte has come for so long that its average rate misleads."""
    return snapshot.quiet is not None and snapshot.quiet >= _STILL_SECONDS


def describe(watched: Watched) -> str:
    """`waiting for 38 of 52 GiB, 1.2 GiB/s, 12 s left`, or `… no bytes for 30 s`."""
    snapshot = watched.snapshot
    if snapshot.state is PullState.RESOLVING or not snapshot.total:
        return "waiting for the image to be resolved"
    left = max(0, snapshot.total - snapshot.done)
    unit = _unit(snapshot.total)
    amounts = f"{_number(left, unit)} of {_number(snapshot.total, unit)} {_UNITS[unit]}"
    if watched.since < _SHORTEST_SECONDS:
        return f"waiting for {amounts}"
    rate = (snapshot.done - watched.before) / watched.since
    if stands_still(snapshot) or rate < 1:
        seconds = watched.since if snapshot.quiet is None else snapshot.quiet
        return f"waiting for {amounts}, no bytes for {seconds:.0f} s"
    own = _unit(int(rate))
    speed = f"{_number(rate, own)} {_UNITS[own]}/s"
    return f"waiting for {amounts}, {speed}, {left / rate:.0f} s left"


def _unit(size: int) -> int:
    unit = 0
    while unit < len(_UNITS) - 1 and size >= 1024 ** (unit + 1):
        unit += 1
    return unit


def _number(size: float, unit: int) -> str:
    value = size / 1024**unit
    return f"{value:.0f}" if unit == 0 or value >= 10 else f"{value:.1f}"
