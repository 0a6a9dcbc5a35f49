"""Finds out when the servers of a version that gets no requests any more have finished those that they had.

Answers that are streamed take minutes, so a weight of 0 ends none. What servers report is in memory: after a restart
they are watched again, which only delays.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import aiohttp

from workspace.controller.cluster.object_cache import Key
from workspace.controller.loops.bulkheads import Bulkheads
from workspace.controller.loops.server_pages import AT_ONCE, read_metrics, ready_servers
from workspace.controller.rollouts.traffic import SETTLE_SECONDS
from workspace.controller.runner import Runner
from workspace.server_metrics import parse_reading

Json = dict[str, Any]

logger = logging.getLogger(__name__)

TICK: Final = 1.0  # seconds between two looks at a version's servers


class DrainLoop:
    """Watches the versions that a runner drains. Each Workspace is a bulkhead: one that is slow delays no other."""

    def __init__(
        self, runner: Runner, session: aiohttp.ClientSession,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:  # fmt: skip
        self._runner = runner
        self._session = session
        self._clock = clock
        self._sleep = sleep
        # When the servers of a version were first seen without requests, and have been ever since.
        self._quiet: dict[Key, tuple[str, float]] = {}

    async def run(self) -> None:
        """Runs until cancelled."""
        async with asyncio.TaskGroup() as group:
            looking = Bulkheads[Key](group, logger)
            while True:
                for gone in set(self._quiet) - set(self._runner.draining):
                    del self._quiet[gone]
                for key in self._runner.draining:
                    if key not in looking:
                        failing = f"{'/'.join(key)}: running requests can't be counted"
                        looking.start(key, self.look(key), failing=failing)
                await self._sleep(TICK)

    async def look(self, key: Key) -> None:
        """Reads one Workspace's servers, and says so once all have been idle for long enough."""
        version = self._runner.draining.get(key)
        if version is None:
            return
        servers = ready_servers(self._runner.cache.objects(key), version)
        places = asyncio.Semaphore(AT_ONCE)
        are_idle = await asyncio.gather(*(self._is_idle(each, places) for each in servers))
        # While servers were read, the drain may have ended, or another version's begun.
        if self._runner.draining.get(key) != version:
            return
        # `all` of no servers holds: a version without a ready one has nothing to finish.
        if not all(are_idle):
            self._quiet.pop(key, None)
            return
        known, since = self._quiet.setdefault(key, (version, self._clock()))
        if known != version:
            self._quiet[key] = (version, self._clock())
        elif self._clock() - since >= SETTLE_SECONDS and self._runner.idle.get(key) != version:
            self._runner.idle[key] = version
            self._runner.queue.add(key)

    async def _is_idle(self, pod: Json, places: asyncio.Semaphore) -> bool:
        """Whether a server neither runs nor holds a request; one that doesn't tell may have some."""
        reading = await read_metrics(self._session, pod, parse_reading, places)
        return reading is not None and not reading.running and not reading.waiting
