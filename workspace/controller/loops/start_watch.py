"""Follows servers that start: reads their logs while they do, and their metrics until the first token.

The runner says which pods; what is learned goes into the Workspace's status by its next pass. In memory only: after a
restart the logs are read again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Set
from dataclasses import replace
from typing import Any, Final

import aiohttp

from modelimage.errors import AccessDenied, Unreachable, WeightyardError
from workspace.controller.cluster.kube_api import KubernetesApi
from workspace.controller.cluster.object_cache import Key
from workspace.controller.loops.bulkheads import Bulkheads
from workspace.controller.loops.server_pages import read_page, server_urls
from workspace.controller.observation.objects import is_ready
from workspace.controller.observation.pod_start import NO_NEWS, StartNews, container_start
from workspace.controller.process.log_events import about
from workspace.controller.runner import Runner
from workspace.engine_log import read_log, stamped_lines
from workspace.render import names
from workspace.server_metrics import has_generated

Json = dict[str, Any]

logger = logging.getLogger(__name__)

PERIOD: Final = 2.0  # seconds
# A pod is looked at again after this share of the time that it takes already: precision is a share too.
_SHARE: Final = 0.1
_LOG_BYTES: Final = 1 << 20  # a start's log is a tenth of it
_AT_ONCE: Final = 16
_REFUSED_SECONDS: Final = 300.0  # after which logs are asked for again


class StartWatch:
    """Watches the starts of a runner's Workspaces. Each pod is a bulkhead: one that is slow holds up no other."""

    def __init__(
        self, runner: Runner, api: KubernetesApi, session: aiohttp.ClientSession,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:  # fmt: skip
        self._runner, self._api, self._session = runner, api, session
        self._clock, self._sleep = clock, sleep
        # Each look may hold a log of a megabyte: hundreds of pods start at once when a node comes back.
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._due: dict[str, float] = {}
        self._no_logs_until = 0.0  # of the clock: a right that is missing may be given

    async def run(self) -> None:
        """Runs until cancelled."""
        async with asyncio.TaskGroup() as group:
            looking = Bulkheads[str](group, logger)
            while True:
                watched = dict(self._runner.starts.watched)
                uids = frozenset[str]().union(*watched.values())
                # Times of pods that aren't watched any more would make the table grow with every pod.
                self._due = {uid: at for uid, at in self._due.items() if uid in uids}
                now = self._clock()
                for key, pods in watched.items():
                    due = {uid for uid in pods if uid not in looking and self._is_due(uid, now)}
                    for pod in self._pods(key, due) if due else ():
                        failing = (
                            f"{'/'.join(key)}: the start of {pod['metadata']['name']} can't be read"
                        )
                        looking.start(pod["metadata"]["uid"], self._look(key, pod), failing=failing)
                await self._sleep(PERIOD)

    def _is_due(self, uid: str, now: float) -> bool:
        return now >= self._due.get(uid, 0.0)

    def _pods(self, key: Key, uids: Set[str]) -> list[Json]:
        return [
            each
            for each in self._runner.cache.objects(key)
            if each["kind"] == "Pod" and each["metadata"].get("uid") in uids
        ]

    async def _look(self, key: Key, pod: Json) -> None:
        async with self._places:
            await self.look(key, pod)

    async def look(self, key: Key, pod: Json) -> None:
        """Learns what there is of one pod's start, and has its Workspace reconciled if that is new."""
        uid, began = str(pod["metadata"]["uid"]), container_start(pod)
        known = self._runner.starts.news.get(uid, NO_NEWS)
        now = self._clock()
        self._due[uid] = now + max(PERIOD, _SHARE * (now - (began or now)))
        news = known
        if not known.log_read:
            news = await self._with_log(pod, known)
        if is_ready(pod) and news.first_token is None and await self._has_generated(pod):
            news = replace(news, first_token=self._clock())
        # What is kept of a pod goes when its watch ends: news that come later would stay for ever.
        if news != known and uid in self._runner.starts.watched.get(key, ()):
            self._runner.starts.news[uid] = news
            self._runner.queue.add(key)

    async def _with_log(self, pod: Json, known: StartNews) -> StartNews:
        """What the log tells; it is read for the last time once the server is ready."""
        if self._clock() < self._no_logs_until:
            return replace(known, log_read=is_ready(pod))
        metadata, is_last = pod["metadata"], is_ready(pod)
        try:
            text = await self._api.log(
                metadata["namespace"], metadata["name"], container=names.SERVER_CONTAINER, most=_LOG_BYTES
            )  # fmt: skip
        except AccessDenied as error:
            self._no_logs_until = self._clock() + _REFUSED_SECONDS
            logger.warning(
                "starts are shown without the server's own stages: %s",
                error.message,
                extra=about(
                    "server log not readable", pod=f"{metadata['namespace']}/{metadata['name']}"
                ),
            )
            return replace(known, log_read=is_last)
        # Not read yet, even if this was to be the last time: the next look tries again.
        except Unreachable:
            return known
        except WeightyardError as error:
            logger.debug("%s: no log yet: %s", metadata["name"], error.message)
            return replace(known, log_read=is_last)
        # In a thread: a tenant's megabyte of lines takes a second, in which nothing else would be reconciled.
        read = await asyncio.to_thread(read_log, stamped_lines(text))
        return replace(known, log=read.ends, log_read=is_last)

    async def _has_generated(self, pod: Json) -> bool:
        """Whether a server's metrics count a token."""
        for url in server_urls(pod):
            try:
                page = await read_page(self._session, f"{url}/metrics")
            except WeightyardError as error:
                logger.debug("%s: no metrics: %s", pod["metadata"]["name"], error.message)
                continue
            if has_generated(page):
                return True
        return False
