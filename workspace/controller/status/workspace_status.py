"""Computes a Workspace's status: conditions and counts from the observed cluster. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from modelimage.errors import WeightyardError
from workspace.controller import conditions
from workspace.controller.conditions import StatusCondition
from workspace.controller.observation.cluster_state import CachedState, server_count, serving_pods
from workspace.controller.observation.node_news import node_answer
from workspace.controller.observation.objects import has_labels, is_ready
from workspace.controller.observation.observed import Observed
from workspace.controller.observation.pod_problems import (
    ServerProblem,
    prewarm_problem,
    pull_progress,
    scaler_problem,
    worst_problem,
)
from workspace.controller.observation.revisions import Revision
from workspace.controller.reasons import Reason
from workspace.controller.rollouts.route_view import route_status, routed_conditions
from workspace.controller.servers.spares import Spares
from workspace.controller.status.build_progress import build_condition
from workspace.controller.status.group_status import being_created, missing_kind
from workspace.controller.status.startups import startups
from workspace.crd import MOST_REASONS
from workspace.render import names
from workspace.render.kubernetes import has_activator
from workspace.rollout_status import RolloutStatus
from workspace.schema import Workspace
from workspace.sources import NotBuilt

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ReportInput:
    """What reconcile found and decided, as input of the report.

    `target` is the desired version, `active` the one that the Deployment should run, `goal` the desired number of
    replicas and `allowed` the number that may start now. `versions` are those that are kept. `new_weight` is the
    percent of requests that a route should give a new version.
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
    spares: Spares
    versions: tuple[Revision, ...] = ()
    rollout: RolloutStatus | None = None
    new_weight: int = 0

    @property
    def desired(self) -> Revision | None:
        """The desired version, where it is known."""
        return self.target if isinstance(self.target, Revision) else None


def report(report_input: ReportInput) -> Json:
    """The whole status."""
    document = report_input.observed.document
    total, ready_count = server_count(report_input.observed)
    parts = [_resolved(report_input), _cached(report_input)]
    parts += [_scheduled(report_input), _available(report_input)]
    workspace, observed = report_input.workspace, report_input.observed
    route = route_status(workspace, observed, wanted=report_input.new_weight)
    parts += routed_conditions(workspace, observed, route)
    # What keeps objects from being written explains whatever the conditions below lack, so it is told first.
    ready = (
        _refused(report_input)
        or _conflicting(report_input)
        or conditions.ready(parts, done=_done(report_input))
    )
    found = [*parts, ready]
    generation = int(document["metadata"].get("generation", 1))
    before = conditions.known(document)
    selector = names.selector(workspace.name, names.SERVER, observed.bound_uid)
    return {
        "observedGeneration": generation,
        "conditions": conditions.merge(before, found, generation=generation, now=observed.now),
        "replicas": total,
        "readyReplicas": ready_count,
        # The scale subresource names this field: autoscalers find the pods to count by it.
        "selector": ",".join(f"{name}={value}" for name, value in selector.items()),
        **_version(report_input),
        **startups(report_input.observed, report_input.versions),
        **({"rollout": report_input.rollout.to_document()} if report_input.rollout else {}),
        **({"route": route.to_document()} if route else {}),
    }


def _refused(report_input: ReportInput) -> StatusCondition | None:
    """The Ready condition when the API server refused a write: a quota, a webhook, a missing right."""
    refused = report_input.observed.refused
    if not refused:
        return None
    more = f" ({len(refused) - 1} more)" if len(refused) > 1 else ""
    text = f"The API server refused a write: {refused[0]}{more}. It is tried again every minute."
    return StatusCondition(conditions.READY, False, Reason.WRITE_REFUSED, text)


def _conflicting(report_input: ReportInput) -> StatusCondition | None:
    """The Ready condition when names are taken by objects that aren't the Workspace's."""
    if not report_input.conflicts:
        return None
    text = ", ".join(report_input.conflicts)
    return StatusCondition(
        conditions.READY, False, Reason.NAME_CONFLICT,
        f"These objects exist and don't belong to the Workspace: {text}. Servers are neither started nor changed, and "
        "requests aren't sent elsewhere, until you delete or rename them, or rename the Workspace.",
    )  # fmt: skip


def _version(report_input: ReportInput) -> Json:
    shown = report_input.desired or report_input.active
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
        **({"notChosen": list(shown.reasons[:MOST_REASONS])} if shown.reasons else {}),
        "revision": shown.number,
        "url": f"http://{workspace.name}.{workspace.metadata.namespace}.svc",
        # Of the chosen nodes alone: others may hold the model as well.
        "cached": f"{len(set(cached_state.chosen) & cached_state.warm)}/{len(cached_state.chosen)}",
    }


def _resolved(report_input: ReportInput) -> StatusCondition:
    kind, target = conditions.MODEL_RESOLVED, report_input.target
    if isinstance(target, WeightyardError):
        found = conditions.failed(kind, target)
        if isinstance(target, NotBuilt):
            found = build_condition(report_input.workspace, report_input.observed, target)
        if report_input.active is None:
            return found
        serving = f"{conditions.sentence(found.message)} The previous version keeps serving."
        return StatusCondition(kind, False, found.reason, serving)
    if target is None:
        return StatusCondition(
            kind, None, Reason.RESOLVING, "The registry is being asked for the image."
        )
    context = f" with {target.context} tokens of context" if target.context else ""
    where = f"{target.gpus} GPU{'s' * (target.gpus > 1)}" if target.gpus else "CPUs"
    where += f" of {target.nodes} nodes" if target.nodes > 1 else ""
    return StatusCondition(
        kind, True, Reason.PINNED,
        f"Each replica serves the variant {target.variant} of {target.image} on {where}{context}.",
    )  # fmt: skip


def _cached(report_input: ReportInput) -> StatusCondition:
    kind, cached_state = conditions.CACHED, report_input.cached_state
    if cached_state is None:
        return StatusCondition(kind, None, Reason.UNRESOLVED, "No model to cache is known yet.")
    # An autoscaler's 0 is no such case: a node keeps the model for the server that comes first.
    if not report_input.goal and report_input.workspace.spec.scale is None:
        return StatusCondition(
            kind, True, Reason.NOT_NEEDED, "No replicas are requested, so no node needs the model."
        )
    if not cached_state.eligible:
        return StatusCondition(
            kind, False, Reason.NO_NODE,
            "No ready node fits spec.resources. Replicas are created anyway, so that an autoscaler can add a node; "
            "without one, add a node with this GPU or change resources, nodeSelector or tolerations.",
        )  # fmt: skip
    held = len(set(cached_state.chosen) & cached_state.warm)
    if cached_state.is_cached:
        text = f"{held} of {_nodes(len(cached_state.chosen))} the model."
        # Servers have what they need: spares that lack something keep nothing from being ready.
        reason, more = report_input.spares.problem or (Reason.WARM, "")
        return StatusCondition(kind, True, reason, f"{text} {more}".strip())
    waiting = ", ".join(cached_state.missing[:5])
    problem = prewarm_problem(report_input.observed)
    observed = report_input.observed
    said = problem or pull_progress(observed.pods(names.PREWARM), observed.mounts)
    holding = f"{held} of {_nodes(len(cached_state.chosen))} the model"
    text = f"{holding}; it is being fetched on {waiting}. {said}"
    reason = Reason.FETCH_FAILED if problem else Reason.FETCHING
    return StatusCondition(kind, False, reason, text)


def _server_problem(report_input: ReportInput, *, active: bool = True) -> ServerProblem | None:
    """What keeps servers of the version that runs from being ready, or those of the versions before it."""
    observed, version = report_input.observed, report_input.active
    pods = [*serving_pods(observed), *serving_pods(observed, ended=True)]
    mine = [
        pod for pod in pods
        if active == (version is None or has_labels(pod, {names.REVISION: version.id}))
    ]  # fmt: skip
    named = names.with_on_demand(report_input.workspace.name) if active else ()
    deployments = [observed.find("Deployment", name) for name in named]
    return worst_problem(mine, *deployments, mounts=observed.mounts)


def _scheduled(report_input: ReportInput) -> StatusCondition:
    if report_input.goal and report_input.active is None:
        text = "Servers are created once the model is resolved."
        return StatusCondition(conditions.SCHEDULED, None, Reason.UNRESOLVED, text)
    missing = missing_kind(report_input.desired, report_input.observed)
    if report_input.goal and missing is not None:
        return missing
    return _placed(report_input)


def _placed(report_input: ReportInput) -> StatusCondition:
    """Whether every replica of the version that should run has a node."""
    kind, servers = conditions.SCHEDULED, report_input.observed.pods(names.SERVER)
    if not report_input.goal:
        return StatusCondition(kind, True, Reason.NOT_NEEDED, "No replicas are requested.")
    problem = _server_problem(report_input)
    if problem is not None and problem.reason is Reason.FAILED_CREATE:
        return StatusCondition(kind, False, problem.reason, problem.message)
    if problem is not None and problem.reason is Reason.UNSCHEDULABLE:
        return _unscheduled(report_input, problem)
    if report_input.allowed < report_input.goal:
        return StatusCondition(
            kind, False, Reason.WAITING_FOR_CACHE,
            f"{report_input.allowed} of {report_input.goal} replicas are created until more nodes hold the model.",
        )  # fmt: skip
    if len(servers) < report_input.allowed:
        text = being_created(report_input.workspace.name, report_input.active)
        return StatusCondition(kind, None, Reason.STARTING, text)
    return StatusCondition(kind, True, Reason.PLACED, "Every replica has a node.")


def _unscheduled(report_input: ReportInput, problem: ServerProblem) -> StatusCondition:
    """A pod without a node: the previous version holds what it needs, or no node fits it at all."""
    kind, version = conditions.SCHEDULED, report_input.active
    total, _ = server_count(report_input.observed)
    own, _ = server_count(report_input.observed, version)
    # The scheduler counts nodes that lack a resource; what else keeps nodes out, another version doesn't hold.
    if total > own and "Insufficient" in problem.message:
        return StatusCondition(
            kind, False, Reason.NO_ROOM,
            f"There is no room for the new version while the old one keeps serving. {problem.message} Or set "
            "replicas to 0 and back, which interrupts serving.",
        )  # fmt: skip
    observed = report_input.observed
    answer = node_answer(serving_pods(observed), observed.answers)
    return StatusCondition(kind, False, problem.reason, f"{problem.message} {answer}".rstrip())


def _available(report_input: ReportInput) -> StatusCondition:
    kind, observed = conditions.AVAILABLE, report_input.observed
    _, ready_count = server_count(observed)
    if ready_count:
        return StatusCondition(kind, True, Reason.SERVING, f"{_replicas(ready_count)} ready.")
    if not report_input.goal:
        return _at_zero(report_input)
    # Of the version that should run first: what is wrong with those before it ends with them.
    problem = _server_problem(report_input) or _server_problem(report_input, active=False)
    if problem is not None:
        return StatusCondition(kind, False, problem.reason, problem.message)
    waits = pull_progress(observed.pods(names.SERVER), observed.mounts)
    return StatusCondition(kind, False, Reason.STARTING, f"No replica is ready yet. {waits}")


def _at_zero(report_input: ReportInput) -> StatusCondition:
    """Without a server only an activator can take requests."""
    kind, workspace = conditions.AVAILABLE, report_input.workspace
    if workspace.spec.scale is None:
        return StatusCondition(
            kind,
            False,
            Reason.STOPPED,
            "spec.replicas is 0, so nothing serves. Set it to 1 or more to serve.",
        )
    if report_input.keda_missing:
        return _without_keda(kind)
    missing = _activator_problem(report_input)
    if missing is not None:
        return StatusCondition(kind, False, missing.reason, missing.message)
    text = "Scaled to 0; the first request starts a replica."
    return StatusCondition(kind, True, Reason.SCALED_TO_ZERO, text)


def _activator_problem(report_input: ReportInput) -> ServerProblem | None:
    """Why the activator can't take requests; None if it can, or if there is none."""
    observed, workspace = report_input.observed, report_input.workspace
    pods = observed.pods(names.ACTIVATOR)
    if not has_activator(workspace) or any(map(is_ready, pods)):
        return None
    deployment = observed.find("Deployment", names.activator(workspace.name))
    return worst_problem(pods, deployment, mounts=observed.mounts) or ServerProblem(
        Reason.ACTIVATOR_NOT_READY,
        "The activator, which takes requests at 0 replicas, isn't ready yet.",
    )


def _without_keda(kind: str) -> StatusCondition:
    return StatusCondition(
        kind, False, Reason.KEDA_MISSING,
        "The cluster has no keda.sh API, so nothing changes the number of replicas, which stays as it is. Install "
        "KEDA, or set spec.scale.by to builtin.",
    )  # fmt: skip


def _nodes(count: int) -> str:
    return "1 node holds" if count == 1 else f"{count} nodes hold"


def _replicas(count: int) -> str:
    return "1 replica is" if count == 1 else f"{count} replicas are"


def _done(report_input: ReportInput) -> StatusCondition:
    """The Ready condition when all others are true: whether everything desired is running."""
    kind = conditions.READY
    if report_input.keda_missing:
        return _without_keda(kind)
    tenancy = report_input.workspace.spec.tenancy
    if (tenancy.quota or tenancy.limits) and not report_input.observed.environment.quotas:
        return StatusCondition(
            kind, False, Reason.QUOTA_NOT_ALLOWED,
            "spec.tenancy.quota and spec.tenancy.limits have no effect: the operator doesn't let Workspaces set them "
            "for their namespace. Remove them, or ask the operator to start the controller with --namespace-quotas.",
        )  # fmt: skip
    return conditions.rolling(report_input.rollout) or _running(report_input)


def _running(report_input: ReportInput) -> StatusCondition:
    """Whether the servers that should run are ready, all with the desired version, and the activator too."""
    kind, revision = conditions.READY, report_input.desired
    total, ready_count = server_count(report_input.observed, revision)
    everything, _ = server_count(report_input.observed)
    rolling = everything > total
    # Only while something is missing: an old crash of a server that is ready by now isn't a problem.
    problem = _server_problem(report_input) if rolling or ready_count < report_input.goal else None
    if problem is not None:
        still = (
            "The new version doesn't run, and the previous one keeps serving. " if rolling else ""
        )
        return StatusCondition(kind, False, problem.reason, f"{still}{problem.message}")
    if rolling:
        text = f"{_replicas(ready_count)} ready with the new version; the others follow."
        return StatusCondition(kind, False, Reason.ROLLING_OUT, text)
    if ready_count < report_input.goal:
        return StatusCondition(
            kind,
            False,
            Reason.STARTING,
            f"{ready_count} of {report_input.goal} replicas are ready.",
        )
    missing = _activator_problem(report_input) or scaler_problem(
        report_input.observed, report_input.workspace.name
    )
    if missing is not None:
        return StatusCondition(kind, False, missing.reason, missing.message)
    version = f" with version {revision.number}" if revision else ""
    if not report_input.goal:
        text = f"Scaled to 0{version}; the first request starts a replica."
        return StatusCondition(kind, True, Reason.READY, text)
    return StatusCondition(kind, True, Reason.READY, f"{_replicas(ready_count)} ready{version}.")
