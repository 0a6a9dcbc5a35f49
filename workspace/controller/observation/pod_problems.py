"""Why pods don't run, in the words of those who know: the ReplicaSet, the scheduler, the kubelet, the agent. Pure.

The state of the objects counts, which stays as long as the problem does; Kubernetes' Events expire. Only what keeps
volumes from being mounted is told by Events alone, and those count while the pod's state shows no volumes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from workspace.controller.conditions import quoted
from workspace.controller.observation.mount_news import MountNews
from workspace.controller.observation.objects import (
    condition,
    has_ended,
    is_ready,
    waits_for_volumes,
)
from workspace.controller.observation.observed import Observed
from workspace.controller.reasons import Reason
from workspace.render import names

Json = dict[str, Any]

# What a kubelet calls a waiting container -> our reason. Words that alternate while it retries are one reason.
_WAITING: Final = {
    "ErrImagePull": Reason.IMAGE_PULL_BACK_OFF,
    "ImagePullBackOff": Reason.IMAGE_PULL_BACK_OFF,
    "ErrImageNeverPull": Reason.IMAGE_PULL_BACK_OFF,
    "InvalidImageName": Reason.IMAGE_PULL_BACK_OFF,
    "ImageInspectError": Reason.IMAGE_PULL_BACK_OFF,
    "RegistryUnavailable": Reason.IMAGE_PULL_BACK_OFF,
    "SignatureValidationFailed": Reason.IMAGE_PULL_BACK_OFF,
    "CreateContainerConfigError": Reason.CONTAINER_CONFIG,
    "CreateContainerError": Reason.CONTAINER_ERROR,
    "RunContainerError": Reason.CONTAINER_ERROR,
    "PreCreateHookError": Reason.CONTAINER_ERROR,
    "PreStartHookError": Reason.CONTAINER_ERROR,
    "PostStartHookError": Reason.CONTAINER_ERROR,
}
# Ends of a container whose process never ran.
_NEVER_RAN: Final = frozenset({"StartError", "ContainerCannotRun"})
# The order in which problems are told: what keeps pods from existing first.
_ORDER: Final = (
    Reason.FAILED_CREATE,
    Reason.UNSCHEDULABLE,
    Reason.FAILED_MOUNT,
    Reason.IMAGE_PULL_BACK_OFF,
    Reason.CONTAINER_CONFIG,
    Reason.CONTAINER_ERROR,
    Reason.OOM_KILLED,
    Reason.CRASH_LOOP,
    Reason.POD_FAILED,
    Reason.PROGRESS_DEADLINE,
)
# Our containers; all others in a pod are beside them.
_OURS: Final = frozenset(
    {names.SERVER_CONTAINER, names.ACTIVATOR, names.PREWARM, names.BUILD, None}
)
_NO_NEWS: Final[Mapping[str, MountNews]] = {}
# kubelet's words where no agent has registered.
_NO_DRIVER: Final = "not found in the list of registered CSI drivers"

# Objects that scale -> their conditions that are true while they can.
_SCALERS: Final = {
    "HorizontalPodAutoscaler": ("AbleToScale", "ScalingActive"),
    "ScaledObject": ("Ready",),
}


@dataclass(frozen=True, slots=True)
class ServerProblem:
    """What keeps a pod from running, and what to do about it."""

    reason: Reason
    message: str


def worst_problem(
    pods: Sequence[Json],
    *deployments: Json | None,
    mounts: Mapping[str, MountNews] = _NO_NEWS,
) -> ServerProblem | None:
    """The problem to solve first, of some pods and of the Deployments that make them; None without a problem.

    `mounts` is what Events tell of pods' volumes, by the pods' uids.
    """
    of_pods = (pod_problem(each, _news_of(each, mounts)) for each in pods)
    found = [problem for each in deployments for problem in _of_deployment(each or {})]
    found += filter(None, of_pods)
    # The first among equals, by the order of the pods: a status that alternates would be written for ever.
    return min(found, key=lambda each: _ORDER.index(each.reason), default=None)


def prewarm_problem(observed: Observed) -> str:
    """Why a pre-warm pod lacks its volume or image; empty without a problem."""
    # The first found is enough: what keeps one node from warming usually keeps all, and a status has to stay short.
    problem = worst_problem(observed.pods(names.PREWARM), mounts=observed.mounts)
    # An image without `sleep` can't start, but only after the volume was mounted.
    if problem is None or problem.reason in (Reason.CONTAINER_ERROR, Reason.CRASH_LOOP):
        return ""
    return problem.message


def pull_progress(pods: Sequence[Json], mounts: Mapping[str, MountNews]) -> str:
    """How far the models are that pods wait for, as a sentence about the first of them; empty if nothing is told."""
    for pod in pods:
        news = _news_of(pod, mounts)
        if news is not None and not news.failed and not is_ready(pod):
            return f"{pod['metadata']['name']} waits for its volume: {quoted(news.words)}."
    return ""


def pod_problem(pod: Json, news: MountNews | None = None) -> ServerProblem | None:
    """Why a pod isn't ready; None if it is, or if it may only need time."""
    if is_ready(pod):
        return None
    name, status = pod["metadata"]["name"], pod.get("status") or {}
    if has_ended(pod):
        why = ": ".join(filter(None, (status.get("reason"), quoted(status.get("message", "")))))
        return ServerProblem(
            Reason.POD_FAILED, f"{name} was ended by its node: {why or 'no reason is given'}."
        )
    placed = condition(pod, "PodScheduled")
    if placed.get("status") == "False":
        why = quoted(
            placed.get("message") or placed.get("reason") or "the scheduler gives no reason"
        )
        return ServerProblem(
            Reason.UNSCHEDULABLE,
            f"{name} has no node: {why}. Free or add what is missing, or change spec.resources.",
        )
    # Init containers come first: the others wait for them, and their state says nothing.
    found = (_of_container(pod, each) for each in _containers(status))
    first = next((each for each in found if each is not None), None)
    return first or (_of_volume(name, news) if news is not None and news.failed else None)


def _news_of(pod: Json, mounts: Mapping[str, MountNews]) -> MountNews | None:
    """What Events tell of a pod's volumes, as long as it has none."""
    news = mounts.get(str(pod["metadata"].get("uid")))
    return news if news is not None and waits_for_volumes(pod) else None


def _of_volume(name: str, news: MountNews) -> ServerProblem:
    advice = "kubelet tries again until it works."
    if _NO_DRIVER in news.words:
        advice = "Its node has no running agent: see kubectl get pods of the agents and agent.nodeSelector."
    return ServerProblem(
        Reason.FAILED_MOUNT,
        f"A volume of {name} can't be mounted: {quoted(news.words)}. {advice}",
    )


def scaler_problem(observed: Observed, name: str) -> ServerProblem | None:
    """Why the autoscaler can't scale; None if it can, or if there is none."""
    unread = observed.unread
    if unread is not None:
        return ServerProblem(
            Reason.METRIC_UNAVAILABLE,
            f"The built-in scaler can't read the servers' load: {quoted(unread.message)}. {unread.hint or ''} "
            "The number of replicas stays.",
        )
    for kind, conditions in _SCALERS.items():
        scaler = observed.find(kind, name)
        for each in conditions if scaler else ():
            found = condition(scaler or {}, each)
            # At 0 replicas a HorizontalPodAutoscaler pauses.
            if found.get("status") == "False" and found.get("reason") != "ScalingDisabled":
                said = quoted(found.get("message") or found.get("reason", ""))
                return ServerProblem(
                    Reason.METRIC_UNAVAILABLE,
                    f"The {kind} can't scale: {said}. The number of replicas stays; correct what publishes the "
                    "metric, or use scale.by: builtin.",
                )
    return None


def _containers(status: Json) -> Iterator[Json]:
    for field in ("initContainerStatuses", "containerStatuses"):
        yield from status.get(field) or ()


def _of_container(pod: Json, container: Json) -> ServerProblem | None:
    name, state = pod["metadata"]["name"], container.get("state") or {}
    waiting = state.get("waiting") or {}
    reason = _WAITING.get(waiting.get("reason", ""))
    said = quoted(waiting.get("message") or waiting.get("reason", ""))
    if reason is Reason.IMAGE_PULL_BACK_OFF:
        return ServerProblem(
            reason,
            f"The image {container.get('image', '')} of {name} can't be pulled: {said}. "
            f"{_remedy(container, 'Correct spec.runtime.image or spec.model.pullSecret.')}",
        )
    if reason is not None:
        return ServerProblem(
            reason,
            f"The container {container.get('name')} of {name} can't start: {said}. "
            f"{_remedy(container, 'Create what is missing, or correct spec.runtime.')}",
        )
    # `lastState`: a container that restarts is shown as waiting or running, without the reason of its end.
    ended = state.get("terminated") or (container.get("lastState") or {}).get("terminated")
    # An init container that has done its work ends with 0 and isn't started again.
    if not ended or (not container.get("restartCount") and not ended.get("exitCode")):
        return None
    return _of_end(pod, container, ended)


def _of_end(pod: Json, container: Json, ended: Json) -> ServerProblem:
    """The problem of a container that ended, from its exit and from its last words."""
    name, why = pod["metadata"]["name"], ended.get("reason") or "Error"
    which = f" -c {container.get('name')}" if _is_beside(container) else ""
    ended_one = f"The container {container.get('name')} of {name}" if which else name
    words = quoted(ended.get("message", ""), last=True)
    if why in _NEVER_RAN:
        return ServerProblem(
            Reason.CONTAINER_ERROR,
            f"The container {container.get('name')} of {name} can't start: {words or why}. "
            f"{_remedy(container, 'Correct spec.runtime.')}",
        )
    times = container.get("restartCount") or 1
    count = f"{times} time{'s' * (times > 1)}"
    if why == "OOMKilled":
        return ServerProblem(
            Reason.OOM_KILLED,
            f"{ended_one} was killed (OOMKilled) {count} {_memory_limit(pod, container)}. "
            f"{_remedy(container, 'Set spec.resources.memory to more, or spec.runtime.contextLength to less.')}",
        )
    told = f": {words}" if words else ""
    return ServerProblem(
        Reason.CRASH_LOOP,
        f"{ended_one} ended {count}, last with exit code {ended.get('exitCode')} ({why}){told}. "
        f"Run kubectl logs -p {name}{which} to read its log.",
    )


def _is_beside(container: Json) -> bool:
    """Whether a container isn't one of ours, but a sidecar of the spec or what a webhook added."""
    return container.get("name") not in _OURS


def _remedy(container: Json, of_ours: str) -> str:
    """What to correct about a container."""
    if not _is_beside(container):
        return of_ours
    return "Correct it in spec.template.sidecars, or in what else adds it."


def _memory_limit(pod: Json, container: Json) -> str:
    """The memory that a container was allowed, as a part of a sentence."""
    for each in (pod.get("spec") or {}).get("containers") or ():
        limit = ((each.get("resources") or {}).get("limits") or {}).get("memory")
        if each.get("name") == container.get("name") and limit:
            return f"with a memory limit of {limit}"
    return "without a memory limit of its own: its node's memory ran out"


def _of_deployment(deployment: Json) -> Iterable[ServerProblem]:
    status = deployment.get("status") or {}
    # Before the Deployment's controller has seen the newest spec, its conditions are about an older one.
    if status.get("observedGeneration", 0) < deployment.get("metadata", {}).get("generation", 0):
        return
    failure, progress = (
        condition(deployment, "ReplicaFailure"),
        condition(deployment, "Progressing"),
    )
    if failure.get("status") == "True":
        said = quoted(failure.get("message", ""))
        yield ServerProblem(
            Reason.FAILED_CREATE,
            f"Pods of {deployment['metadata']['name']} can't be created: {said}. Change the quota, the limit or the "
            "policy that is named, or spec.resources.",
        )
    if progress.get("reason") == "ProgressDeadlineExceeded":
        yield ServerProblem(
            Reason.PROGRESS_DEADLINE,
            f"Servers of the newest version don't get ready in time: {quoted(progress.get('message', ''))}. "
            "See their logs, or set spec.runtime.startupSeconds to more.",
        )
