"""Computes what is reported of a running fetch. Pure."""

from __future__ import annotations

from cache_agent.api.node_cache import MOST_SOURCES
from cache_agent.fetch.values import PullSnapshot
from cache_agent.prewarm.report import FetchProgress


def fetch_progress(snapshot: PullSnapshot) -> FetchProgress:
    """A fetch's progress, with the sources that gave most."""
    most = sorted(snapshot.by_source, key=lambda each: -each[2])[:MOST_SOURCES]
    # By name: an order by bytes would change, and be reported, all the time.
    sources = tuple(sorted(f"{tier} {name}" for tier, name, size in most if size))
    return FetchProgress(
        snapshot.done, snapshot.total, snapshot.rate, sources,
        snapshot.seconds_left, stands_still=snapshot.stands_still,
    )  # fmt: skip
