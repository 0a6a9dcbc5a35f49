"""Formats a pull's progress, as shown by `kubectl describe pod`. Pure."""

from __future__ import annotations

from cache_agent.fetch.values import PullSnapshot, PullState

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def describe(snapshot: PullSnapshot) -> str:
    """`waiting for 38 of 52 GiB, 1.2 GiB/s, 12 s left`, or `… no bytes for 30 s`."""
    if _is_resolving(snapshot):
        return "waiting for the image to be resolved"
    left = max(0, snapshot.total - snapshot.done)
    unit = _unit(snapshot.total)
    amounts = f"{_number(left, unit)} of {_number(snapshot.total, unit)} {_UNITS[unit]}"
    if snapshot.rate < 1:
        return f"waiting for {amounts}, {_no_bytes(snapshot)}"
    own = _unit(int(snapshot.rate))
    speed = f"{_number(snapshot.rate, own)} {_UNITS[own]}/s"
    return f"waiting for {amounts}, {speed}, {left / snapshot.rate:.0f} s left"


def phase(snapshot: PullSnapshot) -> str:
    """What a pull does, for those who are shown its numbers beside: `being fetched`, or `no bytes for 30 s`."""
    if _is_resolving(snapshot):
        return "its image is being resolved"
    return "being fetched" if snapshot.rate >= 1 else _no_bytes(snapshot)


def _is_resolving(snapshot: PullSnapshot) -> bool:
    return snapshot.state is PullState.RESOLVING or not snapshot.total


def _no_bytes(snapshot: PullSnapshot) -> str:
    return "no bytes yet" if snapshot.quiet is None else f"no bytes for {snapshot.quiet:.0f} s"


def _unit(size: int) -> int:
    unit = 0
    while unit < len(_UNITS) - 1 and size >= 1024 ** (unit + 1):
        unit += 1
    return unit


def _number(size: float, unit: int) -> str:
    value = size / 1024**unit
    return f"{value:.0f}" if unit == 0 or value >= 10 else f"{value:.1f}"
