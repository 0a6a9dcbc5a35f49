"""The built-in autoscaler's loop: reads the load of each Workspace's servers and sets the replicas to run.

`workspace.scaler` decides; the runner writes to the cluster. History is in memory: after a restart the windows begin
again, which only delays.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import aiohttp

from modelimage.errors import InvalidInput, RemoteRefused, WeightyardError, release_locals
from modelimage.spans import span
from modelimage.trace_headers import SpanOrigin
from workspace import arguments
from workspace.controller.cluster.object_cache import Key
from workspace.controller.conditions import sentence
from workspace.controller.loops.bulkheads import Bulkheads
from workspace.controller.loops.server_pages import AT_ONCE, read_answer, read_page, server_urls
from workspace.controller.observation.objects import (
    has_labels,
    is_ready,
    pod_template,
    server_labels,
)
from workspace.controller.process.log_events import about
from workspace.controller.reasons import News, Reason
from workspace.controller.runner import Runner
from workspace.controller.servers.server_objects import asked_shares
from workspace.controller.servers.workloads import (
    find_in,
    on_demand_beside,
    own_objects,
    own_workload,
)
from workspace.document import workspace_of
from workspace.render import names
from workspace.scale_spec import Autoscaler
from workspace.scaler import (
    DEFAULT_BATCH,
    Load,
    Policy,
    Reading,
    ReplicaTarget,
    ScalingDecision,
    decide,
)
from workspace.schema import Workspace
from workspace.server_metrics import parse_held, parse_reading

Json = dict[str, Any]

logger = logging.getLogger(__name__)

PERIOD: Final = 2.0  # seconds between readings


class ScrapedServer(NamedTuple):
    """A ready server: its pod's uid, and its URL."""

    uid: str
    url: str


@dataclass(frozen=True, slots=True)
class Targets:
    """Where to read one Workspace's load: its ready servers, and its activator's URL, if any."""

    current: int
    servers: tuple[ScrapedServer, ...]
    activator: str | None


class Scaler:
    """One Workspace's scaling: its policy, and its recent targets."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._history: tuple[ReplicaTarget, ...] = ()

    def step(self, load: Load, now: float) -> ScalingDecision:
        answer = decide(self.policy, load, self._history, now)
        self._history = answer.history
        return answer


def policy_of(workspace: Workspace, args: Sequence[str] = ()) -> Policy | None:
    """The built-in autoscaler's policy for a Workspace; None when it doesn't apply.

    `args` are its servers' actual arguments, from which the number of concurrent requests per server is read.
    """
    scale = workspace.spec.scale
    if scale is None or scale.by is not Autoscaler.BUILTIN:
        return None
    batch = arguments.count_of(args or workspace.spec.runtime.args, "--max-num-seqs")
    return Policy(
        least=scale.min,
        most=scale.max,
        queue_depth=scale.queue_depth,
        up_window=scale.up_window_seconds,
        down_window=scale.down_window_seconds,
        batch=batch or DEFAULT_BATCH,
    )


async def read_load(
    session: aiohttp.ClientSession, targets: Targets
) -> tuple[Load, RemoteRefused | None]:
    """The current load of one Workspace, and why a server's answer can't be read, if one can't.

    A server that doesn't respond is missing in the readings: it starts, or is busy.
    """
    places = asyncio.Semaphore(AT_ONCE)
    pages = await asyncio.gather(*(_reading(session, each.url, places) for each in targets.servers))
    held, trace = await _held(session, targets.activator) if targets.activator else (0, "")
    readings = tuple(each for each in pages if isinstance(each, Reading))
    refused = next((each for each in pages if isinstance(each, RemoteRefused)), None)
    # By server too: of those with few requests one is stopped first.
    by_server = {
        server.uid: each.running
        for server, each in zip(targets.servers, pages, strict=True)
        if isinstance(each, Reading)
    }
    return Load(targets.current, len(targets.servers), readings, held, trace, by_server), refused


class ScalingLoop:
    """Scales all Workspaces of a runner.

    Each is a bulkhead: one whose servers are slow, or that fails, is late itself and holds up no other.
    """

    def __init__(
        self, runner: Runner, session: aiohttp.ClientSession,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:  # fmt: skip
        self._runner = runner
        self._session = session
        self._clock = clock
        self._sleep = sleep
        self._scalers: dict[Key, Scaler] = {}
        # What was found of each Workspace, with the cache's stamp of then: most are the same at the next look.
        self._found: dict[Key, tuple[tuple[object, ...], tuple[Scaler, Targets] | None]] = {}

    async def run(self) -> None:
        """Runs until cancelled."""
        # Those of an earlier term of leadership are out of date.
        self._runner.loads.clear()
        async with asyncio.TaskGroup() as group:
            scaling = Bulkheads[Key](group, logger)
            while True:
                keys = self._runner.cache.workspaces()
                # A Workspace of the same name that comes later must not inherit the history of this one.
                for gone in set(self._found) - set(keys):
                    del self._found[gone]
                    self._scalers.pop(gone, None)
                    self._runner.loads.pop(gone, None)
                for key in keys:
                    if key not in scaling:
                        failing = f"{'/'.join(key)}: can't be scaled"
                        scaling.start(key, self.scale(key), failing=failing)
                await self._sleep(PERIOD)

    async def scale(self, key: Key) -> None:
        """Reads one Workspace's load and sets its number of replicas."""
        found = self._find(key)
        if found is None:
            self._runner.note_unread(key, None)
            self._runner.wanted.forget(key)
            self._runner.loads.pop(key, None)
            return
        scaler, targets = found
        load, unread = await read_load(self._session, targets)
        # While servers were read, the Workspace may have gone: one of its name must not begin with its replicas.
        if self._scalers.get(key) is not scaler or self._runner.cache.workspace(key) is None:
            return
        self._runner.note_unread(key, unread)
        self._runner.loads[key] = load
        answer = scaler.step(load, self._clock())
        if self._runner.wanted.replicas.get(key) != answer.replicas:
            self._runner.wanted.replicas[key] = answer.replicas
            self._runner.queue.add(key)
            if answer.replicas != load.current:
                version = self._runner.traces.get(key, "")
                origin = SpanOrigin(load.trace or version, link=version if load.trace else "")
                steps = {"from": load.current, "to": answer.replicas}
                with span("scale", origin, workspace="/".join(key), **steps):
                    await self._tell(key, load.current, answer)

    async def _tell(self, key: Key, current: int, answer: ScalingDecision) -> None:
        logger.info(
            "%s/%s: %d -> %d replicas: %s",
            *key,
            current,
            answer.replicas,
            answer.reason,
            extra=about("replicas changed", workspace="/".join(key)),
        )
        self._runner.metrics.scaled(
            "up" if answer.replicas > current else "down", answer.cause.value
        )
        reason = Reason.SCALING_UP if answer.replicas > current else Reason.SCALING_DOWN
        text = sentence(f"From {current} to {answer.replicas} replicas: {answer.reason}")
        document = self._runner.cache.workspace(key)
        if document is not None:
            await self._runner.events.record(document, News("Normal", reason, text))

    def _find(self, key: Key) -> tuple[Scaler, Targets] | None:
        stamp = self._runner.cache.stamp(key)
        known = self._found.get(key)
        if known is None or known[0] != stamp:
            known = self._found[key] = stamp, self._look(key)
        return known[1]

    def _look(self, key: Key) -> tuple[Scaler, Targets] | None:
        """A Workspace's scaler, and where to read its load; None for one that isn't scaled here."""
        document = self._runner.cache.workspace(key)
        if document is None:
            return None
        objects = own_objects(self._runner.cache.objects(key), str(document["metadata"].get("uid")))
        try:
            workspace = workspace_of(document)
            policy = policy_of(workspace, server_args(workspace, objects))
        except InvalidInput:
            return None  # the Workspace's condition has the reason
        if policy is None:
            return None
        scaler = self._scalers.get(key)
        # A changed policy starts with an empty history: the old targets were made under other
        # bounds.
        if scaler is None or scaler.policy != policy:
            scaler = self._scalers[key] = Scaler(policy)
        return scaler, find_targets(workspace, objects)


def server_args(workspace: Workspace, objects: Sequence[Json]) -> Sequence[str]:
    """The arguments of a Workspace's servers from what keeps them; empty before it exists."""
    workload = own_workload(workspace, find_in(objects))
    if workload is None:
        return ()
    containers = pod_template(workload)["spec"]["containers"]
    found = [each for each in containers if each["name"] == names.SERVER_CONTAINER]
    return tuple(found[0].get("args") or ()) if found else ()


def find_targets(workspace: Workspace, objects: Sequence[Json]) -> Targets:
    """Where to read a Workspace's load, from its watched objects."""
    find = find_in(objects)
    own = own_workload(workspace, find)
    current = asked_shares(own, on_demand_beside(own, workspace, find)).total
    holding = _ready(find("Deployment", names.activator(workspace.name)), objects)
    return Targets(current, _ready(own, objects), next((each.url for each in holding), None))


def _ready(workload: Json | None, objects: Sequence[Json]) -> tuple[ScrapedServer, ...]:
    """A workload's ready servers, each at its own version's port."""
    if workload is None:
        return ()
    selector = server_labels(workload)
    # Pods, not the Service: a Service answers for one of them, and the queue is a sum over all.
    return tuple(
        ScrapedServer(str(pod["metadata"].get("uid")), url)
        for pod in objects
        if pod["kind"] == "Pod" and is_ready(pod) and has_labels(pod, selector)
        for url in server_urls(pod)
    )


async def _reading(
    session: aiohttp.ClientSession, server: str, places: asyncio.Semaphore
) -> Reading | WeightyardError:
    try:
        async with places:
            return parse_reading(await read_page(session, f"{server}/metrics"))
    except WeightyardError as error:
        logger.debug("%s: %s", server, error.message)
        # Kept for a moment beside those of many others.
        release_locals(error)
        return error


async def _held(session: aiohttp.ClientSession, activator: str) -> tuple[int, str]:
    """How many requests an activator holds, and the `traceparent` of that which waits longest."""
    try:
        page = await read_answer(session, f"{activator}/activator/metrics")
        return parse_held(page.text), page.trace
    except WeightyardError as error:
        logger.debug("%s: %s", activator, error.message)
        return 0, ""
