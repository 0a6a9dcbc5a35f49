"""Formats a pull's progress, as shown by `kubectl describe pod`. Pure."""

from __future__ import annotations

from cache_agent.fetch.values import PullSnapshot, PullState

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def describe(snapshot: PullSnapshot) -> str:
    """`waiting for 38 of 52 GiB, 1.2 GiB/s, 32 s left`, or `… no bytes for 30 s`."""
    if _is_resolving(snapshot):
        return "waiting for the image to be resolved"
    left = max(0, snapshot.total - snapshot.done)
    unit = _unit(snapshot.total)
    amounts = f"{_number(left, unit)} of {_number(snapshot.total, unit)} {_UNITS[unit]}"
    if snapshot.seconds_left is None or snapshot.done >= snapshot.total:
        return f"waiting for {amounts}{_silence(snapshot)}"
    own = _unit(int(snapshot.rate))
    speed = f"{_number(snapshot.rate, own)} {_UNITS[own]}/s"
    return f"waiting for {amounts}, {speed}, {snapshot.seconds_left:.0f} s left"


def phase(snapshot: PullSnapshot) -> str:
    """What a pull does, for those who are shown its numbers beside: `being fetched`, `…, no bytes for 30 s`."""
    if _is_resolving(snapshot):
        return "its image is being resolved"
    return "waiting for its turn" if snapshot.queued else f"being fetched{_silence(snapshot)}"


def _is_resolving(snapshot: PullSnapshot) -> bool:
    return snapshot.state is PullState.RESOLVING or not snapshot.total


def _silence(snapshot: PullSnapshot) -> str:
    if snapshot.queued:
        return ", after others"
    return f", no bytes for {snapshot.quiet:.0f} s" if snapshot.stands_still else ""


def _unit(size: int) -> int:
    unit = 0
    while unit < len(_UNITS) - 1 and size >= 1024 ** (unit + 1):
        unit += 1
    return unit


def _number(size: float, unit: int) -> str:
    value = size / 1024**unit
    return f"{value:.0f}" if unit == 0 or value >= 10 else f"{value:.1f}"
