"""Executes decisions: takes a Workspace from the queue, observes, decides, writes, caches the results.

`reconcile` and the scaler decide; `workers` defines which errors are retried. Each Workspace is handled by one task at
a time.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

from cache_agent.api.kube.refusals import Conflict, ServerFailed
from cache_agent.api.kube_objects import timestamp
from modelimage.errors import AccessDenied, InvalidInput, NotFound, RemoteRefused, WeightyardError
from workspace.analysis import AnalysisResult
from workspace.controller.cluster.event_recorder import EventRecorder
from workspace.controller.cluster.image_questions import ImageQuestions, Resolver
from workspace.controller.cluster.kube_api import RESOURCES, KubernetesApi
from workspace.controller.cluster.object_cache import Key, WatchCache
from workspace.controller.cluster.watches import OPTIONAL, Name
from workspace.controller.conditions import READY
from workspace.controller.observation.objects import condition
from workspace.controller.observation.observed import (
    Action,
    Annotate,
    Apply,
    Decision,
    Observed,
    reference,
)
from workspace.controller.observation.pod_start import Starts
from workspace.controller.pass_spans import acting, reconciling, tell_step
from workspace.controller.process.log_events import about
from workspace.controller.process.metrics import Metrics
from workspace.controller.process.queue import WorkQueue
from workspace.controller.process.workers import Workers
from workspace.controller.reconcile import reconcile
from workspace.controller.replica_targets import ReplicaTargets
from workspace.controller.rollouts.rollout_plan import window_of
from workspace.controller.rollouts.rollout_view import rollout_before
from workspace.controller.status import error_status
from workspace.controller.status.startups import (
    became_ready,
    completed,
    first_tokens,
    watched_pods,
)
from workspace.controller.status.workspace_news import workspace_news
from workspace.document import workspace_of
from workspace.probes.verdicts import ProbeResult
from workspace.render.routing import SystemSettings
from workspace.rollout_status import RolloutStatus
from workspace.scaler import Load

Json = dict[str, Any]

logger = logging.getLogger(__name__)

# Seconds.
RESYNC: Final = 600.0
REGISTRY_RETRY: Final = 60.0


class Runner:
    """Reconciles all Workspaces of a cluster. `run` works until cancelled."""

    def __init__(
        self, *, api: KubernetesApi, cache: WatchCache, resolver: Resolver, environment: SystemSettings,
        workers: int = 8, metrics: Metrics | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:  # fmt: skip
        self.api = api
        self.cache = cache
        self._environment = environment
        self._groups: frozenset[str] = frozenset()
        self._workers = workers
        self._now = now
        self.metrics = metrics or Metrics()
        self.events = EventRecorder(api, now, self.metrics.recorded)
        self.queue: WorkQueue[Key] = WorkQueue()
        self.wanted = ReplicaTargets()
        self.starts = Starts()
        # Where a new version runs beside the one that serves; and of those what the analysis and probe loops say.
        self.rollouts: dict[Key, RolloutStatus] = {}
        self.analyses: dict[Key, AnalysisResult] = {}
        self.probes: dict[Key, ProbeResult] = {}
        # Versions that get no requests any more: those whose servers have some left, and those whose servers are idle.
        self.draining: dict[Key, str] = {}
        self.idle: dict[Key, str] = {}
        # Of Workspaces that the built-in autoscaler scales, for the page.
        self.loads: dict[Key, Load] = {}
        # The `traceparent` of each version that is worked on.
        self.traces: dict[Key, str] = {}
        self._questions = ImageQuestions(resolver, self.queue.add)
        self._reasons: dict[Key, str] = {}  # of the Ready conditions
        # For metrics: the phase of each last rollout, and how many versions are kept.
        self._phases: dict[Key, str] = {}
        self._versions: dict[Key, int] = {}
        self._failed: set[Key] = set()  # whose last pass had a write at which the server failed

    def seen(self, document: Json, *, deleted: bool = False) -> None:
        """Handles the newest state of an object, from a watch or as the result of our own write."""
        concerned = self.cache.drop(document) if deleted else self.cache.put(document)
        for key in concerned:
            self.queue.add(key)

    def known(self, kind: str) -> dict[Name, Json]:
        """See `ObjectCache`."""
        return self.cache.known(kind)

    def listed(self, kind: str) -> None:
        """See `ObjectCache`."""
        self.cache.listed(kind)

    def kind_present(self, kind: str, present: bool) -> None:
        """Handles that the cluster has a kind or lacks it, which may change while the controller runs."""
        if kind not in OPTIONAL:
            return
        group = {RESOURCES[kind].api.partition("/")[0]}
        groups = self._groups | group if present else self._groups - group
        if groups != self._groups:
            self._groups = groups
            for key in self.cache.workspaces():
                self.queue.add(key)

    async def run(self) -> None:
        """Works until cancelled. Every Workspace is reconciled now, and again every `RESYNC` seconds.

        The cache must hold every object by then: one not yet seen would look deleted.
        """
        # Numbers of an earlier term of leadership are out of date.
        self.wanted = ReplicaTargets()
        self.starts = Starts()
        self.rollouts.clear()
        self.analyses.clear()
        self.draining.clear()
        self.idle.clear()
        self.probes.clear()
        for key in self.cache.workspaces():
            self.queue.add(key)
        workers = Workers(
            self.queue, self.reconcile, workers=self._workers, report=self._report_bug,
            passes=self.metrics.passes("Workspace"),
        )  # fmt: skip
        try:
            await workers.run()
        finally:
            await self._questions.close()
            for known in (self._reasons, self._phases, self._versions):
                known.clear()

    def ready_reasons(self) -> Counter[str]:
        """How many Workspaces have which reason in their Ready condition, of those seen since this term began."""
        return Counter(self._reasons.values())

    def rollout_phases(self) -> Counter[str]:
        """How many Workspaces have which phase in their last rollout."""
        return Counter(phase for phase in self._phases.values() if phase)

    def versions(self) -> int:
        """How many versions are kept, of all Workspaces."""
        return sum(self._versions.values())

    def note_unread(self, key: Key, problem: WeightyardError | None) -> None:
        """Why the scaler can't read a Workspace's load, or that it can: told in the Workspace's status."""
        known = self.wanted.unread.pop(key, None)
        if problem is not None:
            self.wanted.unread[key] = problem
        if (known and known.message) != (problem and problem.message):
            self.queue.add(key)

    async def reconcile(self, key: Key) -> float | None:
        """One pass over a Workspace. Returns the seconds until the next pass. Raises the API's errors."""
        began = time.time_ns()
        observed = self._observe(key)
        if observed is None:
            self._forget(key)
            return None
        self.starts.watch(key, watched_pods(observed, self._now().timestamp()))
        decision = reconcile(observed)
        # The registry is queried only when no stored version matches, so outages don't affect what
        # runs.
        if decision.ask_registry:
            workspace = workspace_of(observed.document)
            resolved = await self._questions.answer(key, workspace)
            observed = replace(observed, resolved=resolved)
            decision = reconcile(observed)
        # Server-side apply would take over an object of the same name that others made.
        strangers = await self._strangers(observed, decision)
        if strangers:
            observed = replace(observed, objects=(*observed.objects, *strangers))
            decision = reconcile(observed)
        tell_step(rollout_before(observed.document), decision.rollout, decision.trace)
        if decision.rollout is not None and decision.rollout.is_open:
            self.rollouts[key] = decision.rollout
            # What was counted under a weight says nothing of a later time under the same.
            found = self.analyses.get(key)
            if found is not None and found.window != window_of(decision.rollout):
                del self.analyses[key]
        else:
            self._forget_rollout(key)
        self._drain(key, decision.draining)
        self.traces[key] = decision.trace
        self._phases[key] = decision.rollout.phase.value if decision.rollout else ""
        self._versions[key] = sum(each["kind"] == "ControllerRevision" for each in observed.objects)
        with reconciling(key, decision, began):
            refused = await self._carry_out(key, observed, decision)
        failed = isinstance(observed.resolved, WeightyardError)
        again = REGISTRY_RETRY if failed or refused or decision.ask_registry else RESYNC
        return again if decision.wake_after is None else min(again, decision.wake_after)

    def _forget(self, key: Key) -> None:
        """Drop all that is known of a Workspace that is gone."""
        self.wanted.forget(key)
        self.starts.watch(key, frozenset())
        self._forget_rollout(key)
        self._drain(key, None)
        self.loads.pop(key, None)
        self.traces.pop(key, None)
        self._questions.forget(key)
        self._failed.discard(key)
        for known in (self._reasons, self._phases, self._versions):
            known.pop(key, None)

    def _forget_rollout(self, key: Key) -> None:
        """Also what was found about it: a version that is tried again is compared anew."""
        self.rollouts.pop(key, None)
        self.analyses.pop(key, None)
        self.probes.pop(key, None)

    def _drain(self, key: Key, version: str | None) -> None:
        """Which version's servers are to be watched until they are idle; what was found of another is forgotten."""
        if version is None:
            self.draining.pop(key, None)
            self.idle.pop(key, None)
        elif self.draining.get(key) != version:
            self.draining[key] = version
            self.idle.pop(key, None)

    def _observe(self, key: Key) -> Observed | None:
        document = self.cache.workspace(key)
        if document is None:
            return None
        objects = self.cache.objects(key)
        return Observed(
            document=document,
            objects=objects,
            mounts=self.cache.mounts(objects),
            answers=self.cache.answers(objects),
            published=self.cache.published(objects),
            starts=self.starts.news,
            nodes=self.cache.nodes(),
            occupied=self.cache.occupied(),
            now=timestamp(self._now().timestamp()),
            environment=self._environment,
            wanted=self.wanted.replicas.get(key),
            unread=self.wanted.unread.get(key),
            analysis=self.analyses.get(key),
            idle=self.idle.get(key, ""),
            probes=self.probes.get(key),
            running=load.by_server if (load := self.loads.get(key)) else {},
            groups=self._groups,
        )

    async def _strangers(self, observed: Observed, decision: Decision) -> list[Json]:
        """Others' objects with the names about to be applied. Watches filter by label and don't show them."""
        found = []
        for action in decision.actions:
            if not isinstance(action, Apply):
                continue
            kind, name = action.document["kind"], action.document["metadata"]["name"]
            # What the watches show carries the Workspace's label, and so is ours.
            if observed.find(kind, name) is None:
                namespace = action.document["metadata"].get("namespace")
                try:
                    found.append(await self.api.get(kind, namespace, name))
                except NotFound:
                    continue
        return found

    async def _carry_out(self, key: Key, observed: Observed, decision: Decision) -> bool:
        """Writes what was decided. Returns whether the API server refused some of it for good.

        Each write stands alone: a quota or webhook that refuses a pod must keep neither the Service nor the status from
        being written. Raises Conflict or ServerFailed at the end, and at once when the server is away.
        """
        refused: list[str] = []
        again: Conflict | ServerFailed | None = None
        unguarded = False
        for action in decision.actions:
            kind = action.document["kind"] if isinstance(action, Apply) else ""
            # Policies come before what they protect: without its policy nothing new starts.
            if unguarded and kind in ("Deployment", "LeaderWorkerSet", "Service", "Job"):
                continue
            try:
                await self._act(key, action)
                continue
            except Conflict as error:
                again = error
            except ServerFailed as error:
                again = error
                # One failure may be the server's restart. One that lasts, such as a webhook's, is shown.
                if key in self._failed:
                    refused.append(error.message)
            except (AccessDenied, InvalidInput, NotFound, RemoteRefused) as error:
                refused.append(error.message)
            unguarded = unguarded or kind == "NetworkPolicy"
        (self._failed.add if isinstance(again, ServerFailed) else self._failed.discard)(key)
        status = decision.status
        if refused:
            status = reconcile(replace(observed, refused=tuple(refused))).status
        shown = condition({"status": status or observed.document.get("status") or {}}, READY)
        self._reasons[key] = str(shown.get("reason", ""))
        await self._write_status(key, observed.document, status)
        if again is not None:
            raise again
        return bool(refused)

    async def _act(self, key: Key, action: Action) -> None:
        with acting(action):
            await self._write(key, action)

    async def _write(self, key: Key, action: Action) -> None:
        if isinstance(action, Apply):
            # Handled like a watch event right away. The next pass must not act on the state before this write, and
            # the event that follows will change nothing, so it would wake nobody.
            self.seen(await self.api.apply(action.document))
            logger.info(
                "%s/%s: applied %s %s",
                *key,
                *_named(action.document),
                extra=about("object applied", workspace="/".join(key)),
            )
        elif isinstance(action, Annotate):
            await self._annotate(key, action)
        else:
            await self.api.delete(action.reference, key[0], uid=action.uid)
            kind, name = action.reference.kind, action.reference.name
            logger.info(
                "%s/%s: deleted %s %s",
                *key,
                kind,
                name,
                extra=about("object deleted", workspace="/".join(key)),
            )

    async def _annotate(self, key: Key, action: Annotate) -> None:
        """Marks an object that others made. One that is gone by now needs no mark."""
        kind, name = action.reference.kind, action.reference.name
        patch = {"metadata": {"uid": action.uid, "annotations": dict(action.annotations)}}
        with suppress(NotFound):
            self.seen(await self.api.merge(kind, name, patch, namespace=key[0]))

    async def _write_status(self, key: Key, document: Json, status: Json | None) -> None:
        if status is None:
            return
        written = {
            "apiVersion": document["apiVersion"],
            "kind": document["kind"],
            "metadata": {"name": key[1], "namespace": key[0]},
            "status": status,
        }
        # Events before the status: after a crash in between they are recorded again, with the same cause.
        before = document.get("status") or {}
        for news in workspace_news(before, status):
            await self.events.record(document, news, cause=str(before.get("conditions")))
        self.seen(await self.api.apply(written, status=True))
        trace = self.traces.get(key, "")
        for start in completed(document, written):
            self.metrics.started(start, trace)
        for start in first_tokens(document, written):
            self.metrics.first_token(start, trace)
        waited = became_ready(document, written)
        if waited is not None:
            self.metrics.ready(waited, trace)

    async def _report_bug(self, key: Key, error: Exception) -> None:
        """Writes an unexpected error to the Workspace's status, beside the log's traceback."""
        document = self.cache.workspace(key)
        if document is not None:
            now = timestamp(self._now().timestamp())
            status = error_status.unexpected(document, error, now=now)
            await self._write_status(key, document, status)


def _named(document: Json) -> tuple[str, str]:
    found = reference(document)
    return found.kind, found.name
