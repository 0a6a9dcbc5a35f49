"""The bytes that came from each tier and source since the node's start, for its metrics. In memory only.

Each job counts what its workers read from its sources, as it comes, under a lock that it takes anyway. Here the counts
of jobs are only added up: when somebody asks, and when a job ends. So the workers do nothing more for each read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from cache_agent.fetch.job import Job, by_source
from cache_agent.observability.series import bounded

# Bytes by (tier, source).
BySource = Mapping[tuple[str, ...], int]


class FetchedBytes:
    """The bytes of an engine's jobs. Not thread-safe: the engine calls it under its lock.

    Law: what `total` returns never falls, if each job is in `running` until the very step in which `ended` takes it.
    """

    def __init__(self) -> None:
        self._ended: Counter[tuple[str, ...]] = Counter()
        self._seen: set[tuple[str, ...]] = set()

    def ended(self, job: Job) -> None:
        """Keep the bytes of a job that has finished: no worker reads for it any more."""
        self._add(self._ended, [job])

    def total(self, running: Sequence[Job]) -> BySource:
        """The bytes of all jobs so far: of those that ended, and of the running ones."""
        found = self._ended.copy()
        self._add(found, running)
        return found

    def _add(self, counts: Counter[tuple[str, ...]], jobs: Sequence[Job]) -> None:
        for tier, name, size in by_source(jobs):
            counts[bounded((tier, name), self._seen)] += size
