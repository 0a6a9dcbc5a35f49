"""Computes a Workspace's status: conditions and counts from the observed cluster. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from modelimage.errors import WeightyardError
from workspace.controller import conditions
from workspace.controller.cluster_state import CachedState, server_count
from workspace.controller.conditions import StatusCondition
from workspace.controller.objects import condition
from workspace.controller.observed import Observed
from workspace.controller.revisions import Revision
from workspace.render import names
from workspace.render.builder_objects import build_job
from workspace.schema import Workspace
from workspace.sources import NotBuilt

Json = dict[str, Any]

# Characters of an unexpected error in a condition; the log has it whole.
_MOST_SAID: Final = 300


@dataclass(frozen=True, slots=True)
class ReportInput:
    """What reconcile found and decided, as input of the report.

    `target` is the desired version, `active` the one that the Deployment should run, `goal` the desired number of
    replicas and `allowed` the number that may start now.
    """

    workspace: Workspace
    observed: Observed
    target: Revision | WeightyardError | None
    active: Revision | None
    cached_state: CachedState | None
    goal: int
    allowed: int
    conflicts: tuple[str, ...]
    keda_missing: bool


def report(report_input: ReportInput) -> Json:
    """The whole status."""
    document = report_input.observed.document
    total, ready_count = server_count(report_input.observed)
    parts = [
        _resolved(report_input),
        _cached(report_input),
        _scheduled(report_input),
        _available(report_input),
    ]
    ready = _refused(report_input) or conditions.ready(parts, done=_done(report_input))
    found = [*parts, ready]
    generation = int(document["metadata"].get("generation", 1))
    before = _conditions(document)
    selector = names.selector(report_input.workspace.name, names.SERVER)
    return {
        "observedGeneration": generation,
        "conditions": conditions.merge(
            before, found, generation=generation, now=report_input.observed.now
        ),
        "replicas": total,
        "readyReplicas": ready_count,
        "selector": ",".join(f"{name}={value}" for name, value in selector.items()),
        **_version(report_input),
    }


def invalid(document: Json, error: WeightyardError, *, now: str) -> Json:
    """The status of an invalid document: servers keep running, and earlier values stay."""
    kept = {each["type"] for each in _conditions(document)}
    problem = conditions.failed(conditions.MODEL_RESOLVED, error)
    parts = [problem, conditions.ready([problem], done=problem)]
    parts += [
        StatusCondition(kind, None, "Unresolved", "The Workspace can't be read.")
        for kind in (conditions.CACHED, conditions.SCHEDULED, conditions.AVAILABLE)
        if kind not in kept
    ]
    return _with_conditions(document, parts, now=now)


def unexpected(document: Json, error: Exception, *, now: str) -> Json | None:
    """The status after an error that isn't ours: Ready is False, the rest stays. None if that is the status already."""
    said = f"{type(error).__name__}: {error}"[:_MOST_SAID]
    problem = StatusCondition(
        conditions.READY, False, "InternalError",
        f"{said}. This is a bug: please report it with the controller's log. Running servers are left unchanged.",
    )  # fmt: skip
    status = _with_conditions(document, [problem], now=now)
    return None if conditions.same(document.get("status") or {}, status) else status


def _conditions(document: Json) -> Sequence[Json]:
    return (document.get("status") or {}).get("conditions") or ()


def _with_conditions(document: Json, parts: Sequence[StatusCondition], *, now: str) -> Json:
    """A document's status in which some conditions are new or replaced; all else stays."""
    before, generation = _conditions(document), int(document["metadata"].get("generation", 1))
    merged = conditions.merge(before, parts, generation=generation, now=now)
    found = {each["type"]: each for each in (*before, *merged)}
    return {
        **(document.get("status") or {}),
        "observedGeneration": generation,
        "conditions": list(found.values()),
    }


def _refused(report_input: ReportInput) -> StatusCondition | None:
    """The Ready condition when the API server refused a write: a quota, a webhook, a missing right."""
    refused = report_input.observed.refused
    if not refused:
        return None
    more = f" ({len(refused) - 1} more)" if len(refused) > 1 else ""
    text = f"The API server refused a write: {refused[0]}{more}. It is tried again every minute."
    return StatusCondition(conditions.READY, False, "WriteRefused", text)


def _version(report_input: ReportInput) -> Json:
    shown = (
        report_input.target if isinstance(report_input.target, Revision) else report_input.active
    )
    cached_state = report_input.cached_state
    if shown is None or cached_state is None:
        return {}
    workspace = report_input.workspace
    return {
        "image": shown.image,
        "modelKey": str(shown.key),
        "variant": shown.variant,
        "gpus": shown.gpus,
        **({"contextLength": shown.context} if shown.context else {}),
        **({"notChosen": list(shown.reasons)} if shown.reasons else {}),
        "revision": shown.number,
        "url": f"http://{workspace.name}.{workspace.metadata.namespace}.svc",
        "cached": f"{len(set(cached_state.chosen) & cached_state.warm)}/{len(cached_state.chosen)}",
    }


def _resolved(report_input: ReportInput) -> StatusCondition:
    kind, target = conditions.MODEL_RESOLVED, report_input.target
    if isinstance(target, WeightyardError):
        found = conditions.failed(kind, target)
        if isinstance(target, NotBuilt):
            found = _building(report_input, target)
        if report_input.active is None:
            return found
        serving = f"{found.message}. The previous version keeps serving."
        return StatusCondition(kind, False, found.reason, serving)
    if target is None:
        return StatusCondition(kind, None, "Resolving", "Resolving the image.")
    context = f", {target.context} tokens of context" if target.context else ""
    where = f"on {target.gpus} GPU{'s' * (target.gpus > 1)}" if target.gpus else "on CPUs"
    return StatusCondition(
        kind, True, "Pinned", f"{target.variant} {where}{context}: {target.image}"
    )


def _building(report_input: ReportInput, target: NotBuilt) -> StatusCondition:
    """The condition for a model whose image is being built: the state of the build Job."""
    kind = conditions.MODEL_RESOLVED
    jobs = [each for each in report_input.observed.objects if each["kind"] == "Job"]
    job = build_job(report_input.workspace, report_input.observed.environment)["metadata"]["name"]
    found = next((each for each in jobs if each["metadata"]["name"] == job), {})
    if condition(found, "Failed").get("status") == "True":
        why = condition(found, "Failed").get("message", "it failed")
        return StatusCondition(
            kind, False, "BuildFailed",
            f"{target.message}: {why}. See: kubectl logs -l job-name={job}; to try again: kubectl delete job {job}",
        )  # fmt: skip
    if condition(found, "Complete").get("status") == "True":
        text = f"{target.message}, although the job {job} succeeded. See its log: kubectl logs -l job-name={job}"
        return StatusCondition(kind, False, "NotBuilt", text)
    return StatusCondition(kind, False, "Building", f"{target.message}: the job {job} is running")


def _cached(report_input: ReportInput) -> StatusCondition:
    kind, cached_state = conditions.CACHED, report_input.cached_state
    if cached_state is None:
        return StatusCondition(kind, None, "Unresolved", "No model to cache is known yet.")
    if not cached_state.eligible:
        return StatusCondition(
            kind, False, "NoNode",
            "No ready node fits spec.resources. Replicas are created anyway, so that an autoscaler can add a node; "
            "without one, add a node with this GPU or change resources, nodeSelector or tolerations.",
        )  # fmt: skip
    held = len(set(cached_state.chosen) & cached_state.warm)
    if cached_state.is_cached:
        return StatusCondition(
            kind, True, "Warm", f"{held} of {len(cached_state.chosen)} nodes hold it."
        )
    waiting = ", ".join(cached_state.missing[:5])
    problem = _prewarm_problem(report_input)
    text = f"{held} of {len(cached_state.chosen)} nodes hold it; fetching on {waiting}."
    return StatusCondition(
        kind, False, "FetchFailed" if problem else "Fetching", f"{text}{problem}"
    )


def _prewarm_problem(report_input: ReportInput) -> str:
    """Why a pre-warm pod lacks its volume or image, in the kubelet's words; empty without a problem."""
    # The first found is enough: what keeps one node from warming usually keeps all, and a status has to stay short.
    for pod in report_input.observed.pods(names.PREWARM):
        unscheduled = condition(pod, "PodScheduled")
        if unscheduled.get("status") == "False":
            return (
                f" {pod['metadata']['name']} can't be scheduled: {unscheduled.get('message', '')}"
            )
        for each in (pod.get("status") or {}).get("containerStatuses") or ():
            waiting = (each.get("state") or {}).get("waiting") or {}
            if waiting.get("reason") in ("ImagePullBackOff", "ErrImagePull", "InvalidImageName"):
                return f" The server's image can't be pulled: {waiting.get('message', waiting['reason'])}"
    return ""


def _scheduled(report_input: ReportInput) -> StatusCondition:
    kind, servers = conditions.SCHEDULED, report_input.observed.pods(names.SERVER)
    if not report_input.goal:
        return StatusCondition(kind, True, "NotNeeded", "No replicas are requested.")
    for pod in servers:
        if condition(pod, "PodScheduled").get("status") == "False":
            return _unscheduled(pod, servers)
    if report_input.allowed < report_input.goal:
        return StatusCondition(
            kind, False, "WaitingForCache",
            f"{report_input.allowed} of {report_input.goal} replicas are created until more nodes hold the model.",
        )  # fmt: skip
    if not servers:
        return StatusCondition(kind, None, "Starting", "Servers are being created.")
    return StatusCondition(kind, True, "Placed", "Every replica has a node.")


def _unscheduled(pod: Json, servers: list[Json]) -> StatusCondition:
    """A pod without a node: no free resources at all, or the previous version holds them."""
    said = condition(pod, "PodScheduled").get("message", "")
    version = pod["metadata"]["labels"].get(names.REVISION)
    if any(each["metadata"]["labels"].get(names.REVISION) != version for each in servers):
        return StatusCondition(
            conditions.SCHEDULED, False, "NoRoomForNewVersion",
            f"There is no GPU for the new version while the old one keeps serving: {said}. Free or add a GPU; or set "
            "replicas to 0 and back, which interrupts serving.",
        )  # fmt: skip
    name = pod["metadata"]["name"]
    return StatusCondition(
        conditions.SCHEDULED, False, "Unschedulable",
        f"{name} has no node: {said}. Free or add a GPU, or change spec.resources.",
    )  # fmt: skip


def _available(report_input: ReportInput) -> StatusCondition:
    kind, observed = conditions.AVAILABLE, report_input.observed
    _, ready_count = server_count(observed)
    if ready_count:
        return StatusCondition(kind, True, "Serving", f"{ready_count} replicas are ready.")
    if not report_input.goal:
        scaled = report_input.workspace.spec.scale is not None
        reason, text = (
            ("ScaledToZero", "Scaled to 0; the first request starts a replica.")
            if scaled
            else ("Stopped", "spec.replicas is 0.")
        )
        return StatusCondition(kind, scaled, reason, text)
    crash = _crash(observed)
    if crash:
        return StatusCondition(kind, False, "ServerFails", crash)
    return StatusCondition(kind, False, "Starting", "No replica is ready yet.")


def _crash(observed: Observed) -> str:
    for pod in observed.pods(names.SERVER):
        for each in (pod.get("status") or {}).get("containerStatuses") or ():
            # `lastState`: a container that restarts is shown as waiting or running, without the reason of its end.
            last = (each.get("lastState") or {}).get("terminated")
            if each.get("restartCount", 0) and last:
                name = pod["metadata"]["name"]
                why = last.get("reason", "Error")
                return (
                    f"{name} ended with {last.get('exitCode')} ({why}) {each['restartCount']} times; "
                    f"see: kubectl logs -p {name}"
                )
    return ""


def _done(report_input: ReportInput) -> StatusCondition:
    """The Ready condition when all others are true: whether everything desired is running."""
    kind, target = conditions.READY, report_input.target
    if report_input.conflicts:
        text = ", ".join(report_input.conflicts)
        return StatusCondition(
            kind, False, "NameConflict",
            f"These objects exist and don't belong to the Workspace: {text}. "
            "Delete or rename them, or rename the Workspace.",
        )  # fmt: skip
    if report_input.keda_missing:
        return StatusCondition(
            kind, False, "KedaMissing",
            "spec.scale.by is keda and the cluster has no keda.sh API. Install KEDA, or use by: builtin.",
        )  # fmt: skip
    revision = target if isinstance(target, Revision) else None
    total, ready_count = server_count(report_input.observed, revision)
    everything, _ = server_count(report_input.observed)
    if everything > total:
        return StatusCondition(
            kind,
            False,
            "RollingOut",
            f"{ready_count} replicas run the new version; the others follow.",
        )
    if ready_count < report_input.goal:
        return StatusCondition(
            kind, False, "Starting", f"{ready_count} of {report_input.goal} replicas are ready."
        )
    return StatusCondition(
        kind,
        True,
        "Ready",
        f"{ready_count} replicas of version {revision.number if revision else 0}.",
    )
