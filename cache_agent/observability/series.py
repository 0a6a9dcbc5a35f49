"""Bounds the number of series that one metric has. Pure."""

from __future__ import annotations

from typing import Final

MOST_SERIES: Final = 1000  # of one metric


def bounded(labels: tuple[str, ...], seen: set[tuple[str, ...]]) -> tuple[str, ...]:
    """A metric's labels, the last one `other` where too many were seen. Adds them to `seen`.

    Law: labels that were returned once are returned again, so that no count goes from one series to another.
    """
    # A label is kept for ever, here and by whoever scrapes; sources are named after repositories, which images name.
    if labels not in seen and len(seen) >= MOST_SERIES:
        return (*labels[:-1], "other")
    seen.add(labels)
    return labels
