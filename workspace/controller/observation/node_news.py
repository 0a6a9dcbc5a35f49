"""What Events tell of nodes that pods wait for: the answers of the Cluster Autoscaler and of Karpenter.

The scheduler's own words are in the pod's state; whether a node is being made is told by Events alone. They expire and
may be lost, so they only explain a pod that has no node yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from workspace.controller.conditions import quoted
from workspace.controller.observation.objects import node_of
from workspace.controller.observation.pod_news import PodNews, event_time, pod_of, source_of

Json = dict[str, Any]

KARPENTER: Final = "karpenter"
# The answers by an Event's reason, as sentences about what it says.
_ANSWERS: Final[Mapping[str, str]] = {
    "TriggeredScaleUp": "The autoscaler makes a node: {}.",
    "NotTriggerScaleUp": "The autoscaler makes no node: {}.",
    "Nominated": "Karpenter has a node for it: {}.",
    "FailedScheduling": "Karpenter makes no node: {}.",
}
REASONS: Final = tuple(_ANSWERS)
# The scheduler writes FailedScheduling too, for every pod of a cluster that waits.
_SOURCES: Final[Mapping[str, str]] = {"FailedScheduling": KARPENTER}
# The Events to ask an API server for: no others of a whole cluster.
NODE_ANSWERS: Final = tuple(
    f"involvedObject.kind=Pod,reason={reason}"
    + (f",source={_SOURCES[reason]}" if reason in _SOURCES else "")
    for reason in REASONS
)
_MOST_WORDS: Final = 500  # characters


@dataclass(frozen=True, slots=True)
class NodeNews:
    """An answer about a pod's node, as a sentence. `at` is RFC 3339."""

    words: str
    at: str


def parse_answer(event: Json) -> NodeNews | None:
    """What an Event answers; None if it is about something else."""
    reason = str(event.get("reason") or "")
    sentence = _ANSWERS.get(reason)
    if sentence is None or source_of(event) != _SOURCES.get(reason, source_of(event)):
        return None
    said = quoted(str(event.get("message") or "")[:_MOST_WORDS])
    return NodeNews(sentence.format(said or "it gives no reason"), event_time(event))


@dataclass(slots=True)
class NodeAnswers:
    """The newest answer about each pod's node."""

    _news: PodNews[NodeNews] = field(default_factory=PodNews)

    def put(self, event: Json) -> bool:
        """Keeps what an Event answers. Returns whether that is new."""
        pod, news = pod_of(event), parse_answer(event)
        if pod is None or news is None:
            return False
        known = self._news.of(*pod)
        # A list comes in the order of names, so that an older Event may follow.
        if known is not None and known.at > news.at:
            return False
        self._news.put(*pod, news)
        return known is None or known.words != news.words

    def of(self, namespace: str, uid: str) -> NodeNews | None:
        """A pod's answer; None without any."""
        return self._news.of(namespace, uid)

    def forget(self, namespace: str, uid: str) -> None:
        """Forgets a pod that is gone."""
        self._news.forget(namespace, uid)


def node_answer(pods: Iterable[Json], answers: Mapping[str, NodeNews]) -> str:
    """The answer about the first of these pods that has no node, as a sentence; empty where nothing is told."""
    for pod in pods:
        news = answers.get(str(pod["metadata"].get("uid")))
        if news is not None and node_of(pod) is None:
            return news.words
    return ""
