"""Compares the servers of two versions while a new one runs beside the one that serves.

`workspace.analysis` judges; reconcile decides what follows. Counts are in memory: after a restart the comparison begins
again, which only delays.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any, Final

import aiohttp

from modelimage.errors import InvalidInput
from workspace.analysis import (
    QueryAnswer,
    ServerTotals,
    Untold,
    parse_counts,
    with_queries,
)
from workspace.controller.cluster.object_cache import Key
from workspace.controller.loops.bulkheads import Bulkheads
from workspace.controller.loops.prometheus import Prometheus
from workspace.controller.loops.server_pages import AT_ONCE, read_metrics, ready_servers
from workspace.controller.observation.revisions import version_id
from workspace.controller.rollouts.rollout_plan import window_of
from workspace.controller.rollouts.rollout_steps import is_probing, is_reaching_weight
from workspace.controller.rollouts.version_comparison import Readings, VersionComparison
from workspace.controller.runner import Runner
from workspace.document import workspace_of
from workspace.rollout_spec import Rollout
from workspace.rollout_status import RolloutStatus

Json = dict[str, Any]

logger = logging.getLogger(__name__)

TICK: Final = 1.0  # seconds between two looks at which comparisons are due
# A Workspace's pages take one twentieth of the event loop's time: all others share it, and they are a tenant's.
_SHARE: Final = 20


class AnalysisLoop:
    """Compares versions for all rollouts of a runner. Each is a bulkhead: one that fails or is slow delays no other."""

    def __init__(
        self, runner: Runner, session: aiohttp.ClientSession,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        prometheus: Prometheus | None = None,
    ) -> None:  # fmt: skip
        self._runner = runner
        self._prometheus = prometheus
        self._session = session
        self._clock = clock
        self._sleep = sleep
        self._comparisons: dict[Key, VersionComparison] = {}
        self._due: dict[Key, float] = {}
        # What reading pages has taken of the event loop, in seconds.
        self._spent: dict[Key, float] = {}

    async def run(self) -> None:
        """Runs until cancelled."""
        async with asyncio.TaskGroup() as group:
            comparing = Bulkheads[Key](group, logger)
            while True:
                for key in self._due_now():
                    if key not in comparing:
                        failing = f"{'/'.join(key)}: versions can't be compared"
                        comparing.start(key, self.compare(key), failing=failing)
                await self._sleep(TICK)

    def due_at(self, key: Key) -> float:
        """When a Workspace's servers are read again, by the loop's clock."""
        return self._due.get(key, 0.0)

    def _due_now(self) -> list[Key]:
        rollouts = self._runner.rollouts
        for gone in set(self._comparisons) - set(rollouts):
            self._comparisons.pop(gone)
            self._due.pop(gone, None)
            self._spent.pop(gone, None)
            self._runner.analyses.pop(gone, None)
        now = self._clock()
        return [key for key in rollouts if self._due.get(key, now) <= now]

    async def compare(self, key: Key) -> None:
        """Reads one Workspace's servers and leaves the result for the next decision about it."""
        document, status = self._runner.cache.workspace(key), self._runner.rollouts.get(key)
        if document is None or status is None:
            return
        try:
            spec = workspace_of(document).spec.rollout
        except InvalidInput:
            return  # the Workspace's condition has the reason
        # Set before the servers are read: a comparison that fails waits its interval too.
        self._due[key] = self._clock() + spec.analysis.interval_seconds
        comparison = self._comparison(key, status)
        if is_reaching_weight(spec, status):
            # Servers start, for half an hour perhaps: what they count is compared, but this time doesn't count.
            comparison.began = self._clock()
        # Only probes reach a new version without a weight, perhaps all between two readings.
        if status.weight == 0 and comparison.step != status.step:
            comparison.leave_out()
        comparison.step = status.step
        if is_probing(spec, status):
            comparison.leave_out()
            return
        objects = self._runner.cache.objects(key)
        # For both versions together: the limit is the Workspace's.
        places = asyncio.Semaphore(AT_ONCE)
        stable, candidate, answers = await asyncio.gather(
            self._readings(key, ready_servers(objects, status.stable), places),
            self._readings(key, ready_servers(objects, status.version), places),
            self._answers(key, spec, status),
        )
        # While servers were read, the rollout may have ended, or the Workspace.
        if key not in self._runner.rollouts or self._comparisons.get(key) is not comparison:
            return
        pause = _SHARE * self._spent.pop(key, 0.0)
        self._due[key] = max(self._due[key], self._clock() + pause)
        comparison.add(stable, candidate, self._clock())
        result = comparison.result(spec.analysis, self._clock())
        verdict = with_queries(result.verdict, answers)
        self._runner.analyses[key] = replace(result, verdict=verdict)
        self._runner.queue.add(key)

    async def _answers(self, key: Key, spec: Rollout, status: RolloutStatus) -> list[QueryAnswer]:
        """What Prometheus says; nothing while servers for the weight start, since a query looks back in time."""
        queries = spec.analysis.queries
        if not queries or is_reaching_weight(spec, status):
            return []
        if self._prometheus is None:
            unasked = "can't be asked: the operator has named no Prometheus"
            return [Untold(each.name, unasked) for each in queries]
        named = {
            "namespace": key[0], "workspace": key[1], "version": version_id(status.version),
            "stable": version_id(status.stable),
        }  # fmt: skip
        return await self._prometheus.answers(queries, named)

    def _comparison(self, key: Key, status: RolloutStatus) -> VersionComparison:
        """The comparison that goes on, or a new one under a new weight."""
        known, window = self._comparisons.get(key), window_of(status)
        if known is not None and known.window == window:
            return known
        made = VersionComparison(window, self._clock(), status.step)
        # After all requests were moved, the old version answers none: it is remembered as it was before.
        if (
            known is not None
            and status.weight == 100
            and known.window.startswith(f"{status.version}/")
        ):
            made.stable.before = known.stable.total()
        self._comparisons[key] = made
        return made

    async def _readings(self, key: Key, servers: list[Json], places: asyncio.Semaphore) -> Readings:
        found = await asyncio.gather(*(self._read(key, each, places) for each in servers))
        return {str(pod["metadata"]["uid"]): read for pod, read in zip(servers, found, strict=True)}

    async def _read(self, key: Key, pod: Json, places: asyncio.Semaphore) -> ServerTotals | None:
        return await read_metrics(self._session, pod, partial(self._parse, key), places)

    def _parse(self, key: Key, page: str) -> ServerTotals:
        """A page's counts; the time that it takes is the Workspace's own."""
        began = self._clock()
        try:
            return parse_counts(page)
        # Also when it fails: a page that can't be parsed has taken the loop's time all the same.
        finally:
            self._spent[key] = self._spent.get(key, 0.0) + self._clock() - began
