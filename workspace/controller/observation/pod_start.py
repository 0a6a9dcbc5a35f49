"""A server's start from its pod: the ends of its stages, and from them its entry in the Workspace's status. Pure.

Sources are the pod's conditions and container states, the agents' records of published volumes, the server's log, and
the first token that its metrics count. Kubernetes forgets Events and logs, so that an earlier entry counts as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from cache_agent.api.publish_record import PublishRecord
from workspace.controller.observation.objects import condition, node_of
from workspace.render import names
from workspace.startup import StageName, Startup, TierPart, current_stage, timeline

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class StartNews:
    """What a pod's state doesn't tell of its start. Times are seconds since the epoch.

    `log` has the ends of stages that the server's log tells of; `log_read`: nothing more will come from it.
    """

    log: Mapping[StageName, float] = field(default_factory=dict)
    log_read: bool = False
    first_token: float | None = None


NO_NEWS: Final = StartNews()


@dataclass(slots=True)
class Starts:
    """What the controller knows of servers that start: `news` by pod's uid, and the Workspaces whose pods they are."""

    news: dict[str, StartNews] = field(default_factory=dict)
    watched: dict[tuple[str, str], frozenset[str]] = field(default_factory=dict)

    def watch(self, key: tuple[str, str], pods: frozenset[str]) -> None:
        """Watch these pods of a Workspace, by uid, from now on and no others of it."""
        # Or what is known of pods that are gone would stay for as long as the controller runs.
        for gone in self.watched.get(key, frozenset()) - pods:
            self.news.pop(gone, None)
        if pods:
            self.watched[key] = pods
        else:
            self.watched.pop(key, None)


def startup_of(
    pod: Json, version: int, *, published: Sequence[PublishRecord] = (), news: StartNews = NO_NEWS,
    before: Startup | None = None,
) -> Startup | None:  # fmt: skip
    """The entry of a version whose last start is a pod's; None for a pod that shows no time.

    `before` is the version's entry until now. Law: with the entry as `before`, the next call returns it again.
    """
    began = _began(pod)
    if began is None:
        return before
    name, at = str(pod["metadata"]["name"]), _stamp(pod, began)
    same = before if before and (before.pod, before.started_at) == (name, at) else None
    ends = _ends(pod, began, published, news)
    parts = _parts(published)
    if same is not None:
        # A complete entry stays: Ready may change again, and that is no start.
        ends = {**ends, **same.ends} if same.total is not None else {**same.ends, **ends}
        parts = same.parts or parts
    healthy = ends.get(StageName.HEALTH)
    # Not before the log has been read: from then on the entry's times are never amended.
    is_complete = healthy is not None and (news.log_read or (same and same.total is not None))
    stages = timeline(ends, parts)
    entry = Startup(
        version=version, pod=name, node=node_of(pod) or "", started_at=at, stages=stages,
        current=current_stage(ends),
    )  # fmt: skip
    return (
        entry.model_copy(update={"total": entry.ends[StageName.HEALTH]}) if is_complete else entry
    )


def newest(pods: Sequence[Json]) -> Json | None:
    """The pod that began to start last; None without pods."""
    # Creation times have whole seconds: between equals the name decides, and decides the same next time.
    return max(pods, key=lambda pod: (_began(pod) or 0.0, pod["metadata"]["name"]), default=None)


def is_watched(pod: Json, entry: Startup | None, now: float, *, patience: float) -> bool:
    """Whether more may be learned of a pod's start: until its first token, for which it waits some seconds."""
    began = _began(pod)
    if began is None or container_start(pod) is None:
        return False
    if entry is None or entry.pod != pod["metadata"]["name"] or entry.total is None:
        return True
    if entry.started_at != _stamp(pod, began):
        return True
    return StageName.FIRST_TOKEN not in entry.ends and now < began + entry.total + patience


def container_start(pod: Json) -> float | None:
    """When the server's container last started; None while it doesn't run."""
    running = (_container(pod).get("state") or {}).get("running") or {}
    return seconds_of(running.get("startedAt"))


def seconds_of(text: object) -> float | None:
    """A Kubernetes time as seconds since the epoch; None for anything else."""
    if not isinstance(text, str):
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    # `timestamp()` would take a time without a zone for local time; Kubernetes' always have one.
    return None if found.tzinfo is None else found.timestamp()


def seconds_since(since: str, now: str) -> float:
    """Seconds between two Kubernetes times; 0 if one of them is none."""
    began, at = seconds_of(since), seconds_of(now)
    return 0.0 if began is None or at is None else at - began


def _began(pod: Json) -> float | None:
    """When the start began: the pod's creation, or the last restart of the server's container."""
    created = seconds_of(pod["metadata"].get("creationTimestamp"))
    if not _container(pod).get("restartCount"):
        return created
    return container_start(pod)


def _stamp(pod: Json, began: float) -> str:
    restarted = bool(_container(pod).get("restartCount"))
    state = (_container(pod).get("state") or {}).get("running") or {}
    return str(state["startedAt"] if restarted else pod["metadata"]["creationTimestamp"])


def _ends(
    pod: Json, began: float, published: Sequence[PublishRecord], news: StartNews
) -> dict[StageName, float]:
    """The ends that are known now, in seconds since the start began."""
    told: dict[StageName, float | None] = {}
    if not _container(pod).get("restartCount"):
        told[StageName.NODE] = _since_true(pod, "PodScheduled")
        told[StageName.VOLUME] = max(
            (record.at for record in published), default=_since_true(pod, "PodReadyToStartContainers")
        )  # fmt: skip
        told[StageName.IMAGE] = container_start(pod)
    started = container_start(pod)
    if started is not None:
        # A log may begin with lines of the process before the last restart.
        told |= {stage: at for stage, at in news.log.items() if at >= started - 1}
        ready = _since_true(pod, "Ready")
        told[StageName.HEALTH] = ready
        if ready is not None and news.first_token is not None:
            told[StageName.FIRST_TOKEN] = news.first_token
    return {stage: max(0.0, at - began) for stage, at in told.items() if at is not None}


def _since_true(pod: Json, kind: str) -> float | None:
    found = condition(pod, kind)
    return seconds_of(found.get("lastTransitionTime")) if found.get("status") == "True" else None


def _parts(published: Sequence[PublishRecord]) -> tuple[TierPart, ...]:
    """The bytes of all volumes by tier: adapters have volumes of their own, published at the same time."""
    found: dict[str, TierPart] = {}
    for each in (tier for record in published for tier in record.tiers):
        had = found.get(each.tier, TierPart(each.tier, 0, 0.0))
        seconds = max(had.seconds, each.seconds)
        found[each.tier] = TierPart(each.tier, had.size + each.bytes, seconds)
    return tuple(found.values())


def _container(pod: Json) -> Json:
    states = (pod.get("status") or {}).get("containerStatuses") or ()
    return next((each for each in states if each.get("name") == names.SERVER_CONTAINER), {})
