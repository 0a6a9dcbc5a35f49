"""Computes whether a maintenance window is open, and until when. Pure.

Times are in the window's own zone, so 22:00 stays 22:00 when the clocks change.
"""

from __future__ import annotations

from datetime import date, datetime, time, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cache_agent.api.cached_model import DAYS, Window
from modelimage.errors import InvalidInput


def zone_of(window: Window) -> ZoneInfo:
    """The window's time zone. Raises InvalidInput when this machine's database lacks it."""
    try:
        return ZoneInfo(window.time_zone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise InvalidInput(
            f"unknown time zone {window.time_zone!r}",
            hint="Name one of the IANA database, such as UTC or Europe/Berlin.",
        ) from error


def state_at(window: Window, now: float) -> tuple[bool, float]:
    """Whether the window is open at `now`, and when that changes next (seconds since the epoch). Raises InvalidInput.

    Laws: the change lies after `now`; right after it the answer is the other one.
    """
    zone = zone_of(window)
    today = datetime.fromtimestamp(now, zone).date()
    # From two days back, for a window that began yesterday, to a week ahead, for one that opens once a week.
    spans = sorted(
        span
        for offset in range(-2, 9)
        if (span := _span(window, today + timedelta(days=offset), zone)) is not None
    )
    closes = None
    for opens, ends in spans:
        # The windows of two days may touch or overlap: they count as one.
        if closes is not None and opens <= closes:
            closes = max(closes, ends)
        elif opens <= now < ends:
            closes = ends
        elif opens > now:
            return (False, opens) if closes is None else (True, closes)
    if closes is None:
        raise InvalidInput("the window never opens", hint="Give times at which it opens.")
    return True, closes


def _span(window: Window, day: date, zone: ZoneInfo) -> tuple[float, float] | None:
    """The window that starts on a day, as (opens, ends); None when there is none."""
    if DAYS[day.weekday()] not in window.days:
        return None
    start, end = time.fromisoformat(window.start), time.fromisoformat(window.end)
    last = day if end > start else day + timedelta(days=1)
    opens = datetime.combine(day, start, zone).timestamp()
    ends = datetime.combine(last, end, zone).timestamp()
    # A window inside the hour that the clocks skip is empty.
    return (opens, ends) if ends > opens else None
