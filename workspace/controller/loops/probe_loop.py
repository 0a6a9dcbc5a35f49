"""Asks the servers of two versions probes, before the new one gets requests.

`workspace.probes` says what is asked and judges; reconcile decides what follows. Verdicts are in memory: after a
restart the probes are asked again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final

import aiohttp

from modelimage.errors import (
    InvalidInput,
    RemoteRefused,
    Unreachable,
    WeightyardError,
    release_locals,
)
from workspace.controller.cluster.object_cache import Key
from workspace.controller.loops.analysis_loop import TICK
from workspace.controller.loops.bulkheads import Bulkheads
from workspace.controller.loops.probe_sources import ProbeSource
from workspace.controller.loops.server_pages import post_json, ready_servers, server_urls
from workspace.controller.observation.revisions import from_document
from workspace.controller.process.log_events import about
from workspace.controller.rollouts.rollout_steps import is_probing
from workspace.controller.runner import Runner
from workspace.document import workspace_of
from workspace.probes.probe_set import Probe, ProbeSet
from workspace.probes.server_answers import (
    MOST_BYTES,
    Reply,
    Unanswered,
    parse_reply,
    path_of,
    request_of,
)
from workspace.probes.verdicts import (
    ProbeOutcome,
    ProbeResult,
    ProbeVerdict,
    needs_serving,
    verdict,
)
from workspace.rollout_status import RolloutStatus
from workspace.schema import Workspace

Json = dict[str, Any]

logger = logging.getLogger(__name__)

# Seconds for one answer, and for all that are asked at a time; what isn't answered by then is asked again.
_ANSWER: Final = 30.0
_ROUND: Final = 120.0
_AT_ONCE: Final = 4  # probes of one Workspace
_LONGEST_WAIT: Final = 300.0


@dataclass(slots=True)
class _Asking:
    """What is known of one stop at probes: the file, and the verdicts on its probes."""

    token: str
    due: float = 0.0
    rounds: int = 0
    probes: ProbeSet | None = None
    verdicts: dict[str, ProbeVerdict] = field(default_factory=dict)

    def left(self, probes: ProbeSet) -> list[Probe]:
        """The probes that have no answer yet; all of another file."""
        if probes != self.probes:
            self.probes = probes
            self.verdicts.clear()
        return [
            each
            for each in probes.probes
            if each.name not in self.verdicts
            or self.verdicts[each.name].outcome is ProbeOutcome.UNANSWERED
        ]


class ProbeLoop:
    """Asks the probes of all Workspaces that are at that step. Each is a bulkhead, as are their comparisons."""

    def __init__(
        self, runner: Runner, session: aiohttp.ClientSession, source: ProbeSource,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:  # fmt: skip
        self._runner = runner
        self._session = session
        self._source = source
        self._clock = clock
        self._sleep = sleep
        self._asked: dict[Key, _Asking] = {}

    async def run(self) -> None:
        """Runs until cancelled."""
        async with asyncio.TaskGroup() as group:
            asking = Bulkheads[Key](group, logger)
            while True:
                for gone in set(self._asked) - set(self._runner.rollouts):
                    del self._asked[gone]
                for key, status in list(self._runner.rollouts.items()):
                    if key not in asking and self._is_due(key, status):
                        failing = f"{'/'.join(key)}: probes can't be asked"
                        asking.start(key, self.ask(key), failing=failing)
                await self._sleep(TICK)

    def _is_due(self, key: Key, status: RolloutStatus) -> bool:
        # Cheap first: this is looked at for all rollouts every second, and reading a Workspace takes a tenth of a
        # millisecond.
        known = self._asked.get(key)
        if known is not None and known.token == status.token and known.due > self._clock():
            return False
        document = self._runner.cache.workspace(key) if status.weight == 0 else None
        analysis = ((document or {}).get("spec", {}).get("rollout") or {}).get("analysis") or {}
        return "probes" in analysis

    async def ask(self, key: Key) -> None:
        """Asks one Workspace's probes that have no answer yet, and leaves the result for the next decision about it."""
        document, status = self._runner.cache.workspace(key), self._runner.rollouts.get(key)
        if document is None or status is None:
            return
        try:
            workspace = workspace_of(document)
        except InvalidInput:
            return  # the Workspace's condition has the reason
        asked = self._asking(key, status)
        interval = workspace.spec.rollout.analysis.interval_seconds
        if not is_probing(workspace.spec.rollout, status):
            # The next step has another token. Only an edit could make this one another before then.
            asked.due = self._clock() + interval
            return
        # Set before: a round that fails must not be repeated at once.
        wait = interval * 2 ** min(asked.rounds, 10)
        asked.due, asked.rounds = self._clock() + min(wait, _LONGEST_WAIT), asked.rounds + 1
        result = await self._result(key, workspace, status, asked)
        # While servers answered, the rollout may have ended, or the Workspace.
        if self._asked.get(key) is not asked or self._is_over(key, asked):
            return
        # From now on once more: a round may have taken longer than the wait itself.
        asked.due = self._clock() + min(wait, _LONGEST_WAIT)
        self._runner.probes[key] = result
        self._runner.queue.add(key)

    def _is_over(self, key: Key, asked: _Asking) -> bool:
        status = self._runner.rollouts.get(key)
        return status is None or status.token != asked.token

    def _asking(self, key: Key, status: RolloutStatus) -> _Asking:
        known = self._asked.get(key)
        if known is None or known.token != status.token:
            known = self._asked[key] = _Asking(status.token)
        return known

    async def _result(
        self, key: Key, workspace: Workspace, status: RolloutStatus, asked: _Asking
    ) -> ProbeResult:
        try:
            probes = await self._source(workspace, self._image(key, status.version))
        except WeightyardError as error:
            release_locals(error)
            return ProbeResult(status.version, status.stable, problem=error.message)
        left = asked.left(probes)
        await self._round(key, status, left, asked.verdicts)
        for each in left:
            unasked = ProbeVerdict(
                each.name, ProbeOutcome.UNANSWERED, "there was no time to ask it"
            )
            found = asked.verdicts.setdefault(each.name, unasked)
            self._runner.metrics.probed(found.outcome)
        verdicts = tuple(asked.verdicts[each.name] for each in probes.probes)
        result = ProbeResult(status.version, status.stable, verdicts)
        passed = result.count(ProbeOutcome.PASSED)
        logger.info(
            "%s/%s: %s passes %d of %d probes", *key, status.version, passed, len(verdicts),
            extra=about("probes asked", workspace="/".join(key)),
        )  # fmt: skip
        return result

    def _image(self, key: Key, version: str) -> str:
        for each in self._runner.cache.objects(key):
            if each["kind"] == "ControllerRevision" and each["metadata"]["name"] == version:
                return from_document(each).image
        raise InvalidInput(f"the version {version} isn't known")

    async def _round(
        self, key: Key, status: RolloutStatus, left: list[Probe], verdicts: dict[str, ProbeVerdict]
    ) -> None:
        objects = self._runner.cache.objects(key)
        new = _Servers(self._session, ready_servers(objects, status.version))
        serving = _Servers(self._session, ready_servers(objects, status.stable))
        # One iterator for all tasks: each takes the next probe. Between two awaits no other
        # task runs, so none is taken twice.
        waiting = iter(left)

        async def ask_some() -> None:
            for probe in waiting:
                reply = await new.ask(probe)
                theirs = await serving.ask(probe) if needs_serving(probe, reply) else None
                verdicts[probe.name] = verdict(probe, reply, theirs)

        try:
            async with asyncio.timeout(_ROUND), asyncio.TaskGroup() as group:
                for _ in range(_AT_ONCE):
                    group.create_task(ask_some())
        except TimeoutError:
            logger.info(
                "%s/%s: not all probes were answered in %d s", *key, _ROUND,
                extra=about("probes not answered", workspace="/".join(key)),
            )  # fmt: skip


class _Servers:
    """The servers of one version, each asked in turn, at their pods' own addresses."""

    def __init__(self, session: aiohttp.ClientSession, pods: list[Json]) -> None:
        self._session = session
        self._urls = [url for pod in pods for url in server_urls(pod)[:1]]
        self._next = count()

    async def ask(self, probe: Probe) -> Reply:
        """An answer, or why there is none, in words that neither quote it nor name the server."""
        if not self._urls:
            return Unanswered("has no ready server")
        url = self._urls[next(self._next) % len(self._urls)] + path_of(probe)
        try:
            status, data = await post_json(
                self._session, url, request_of(probe), most=MOST_BYTES, seconds=_ANSWER
            )
            return parse_reply(probe, status, data)
        except Unreachable:
            return Unanswered("doesn't answer")
        except RemoteRefused as error:
            release_locals(error)
            return Unanswered("gives no answer that can be read")
