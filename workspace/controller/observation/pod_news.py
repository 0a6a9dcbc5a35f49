"""What Events tell of pods, by namespace and uid, in bounded memory.

Whoever may write Events of a namespace may write any text under any uid: that must tell nothing of another namespace's
pods, and displace nothing that is known of them.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

from cache_agent.api.publish_record import ANNOTATION, PublishRecord, parse_record

Json = dict[str, Any]
T = TypeVar("T")

MODEL_MOUNTED: Final = "involvedObject.kind=Pod,reason=ModelMounted"
AGENT: Final = "weightyard-agent"  # the source of agents' Events
# A thousand pods that start at once; each costs below a kilobyte.
_MOST_PODS: Final = 2000
_LONGEST_UID: Final = 64  # characters; a pod's has 36
_MOST_VOLUMES: Final = 16


def pod_of(event: Json) -> tuple[str, str] | None:
    """The namespace and uid of the pod that an Event is about; None without a sound uid."""
    # The namespace in which it was written: that alone is what its writer has a right to.
    namespace = str((event.get("metadata") or {}).get("namespace") or "")
    uid = (event.get("involvedObject") or {}).get("uid")
    if not isinstance(uid, str) or not 0 < len(uid) <= _LONGEST_UID:
        return None
    return namespace, uid


def source_of(event: Json) -> object:
    """The component that wrote an Event."""
    return (event.get("source") or {}).get("component") or event.get("reportingComponent")


def event_time(event: Json) -> str:
    """When an Event was last seen, RFC 3339; empty if it doesn't say."""
    series = event.get("series") or {}
    # Two generations of the Events API: newer clients note a repetition in `series`, older ones in `lastTimestamp`.
    return str(
        series.get("lastObservedTime") or event.get("lastTimestamp") or event.get("eventTime") or ""
    )


@dataclass(slots=True)
class PodNews(Generic[T]):
    """One value for each pod. Too many: the oldest of the namespace with most is forgotten."""

    _news: dict[str, OrderedDict[str, T]] = field(default_factory=dict)
    _count: int = 0

    def put(self, namespace: str, uid: str, value: T) -> None:
        """Keep a pod's value, in place of an earlier one."""
        pods = self._news.setdefault(namespace, OrderedDict())
        self._count += uid not in pods
        pods[uid] = value
        pods.move_to_end(uid)
        if self._count > _MOST_PODS:
            largest = max(self._news, key=lambda each: len(self._news[each]))
            self.forget(largest, next(iter(self._news[largest])))

    def of(self, namespace: str, uid: str) -> T | None:
        """A pod's value; None without one."""
        pods = self._news.get(namespace)
        return None if pods is None else pods.get(uid)

    def forget(self, namespace: str, uid: str) -> None:
        """Forget a pod that is gone."""
        pods = self._news.get(namespace, OrderedDict())
        self._count -= pods.pop(uid, None) is not None
        if not pods:
            self._news.pop(namespace, None)


@dataclass(slots=True)
class PublishedVolumes:
    """The agents' records of the volumes that they published for each pod."""

    _records: PodNews[tuple[PublishRecord, ...]] = field(default_factory=PodNews)

    def put(self, event: Json) -> bool:
        """Keep an Event's record, if it has one. Returns whether that is new."""
        annotations = (event.get("metadata") or {}).get("annotations") or {}
        pod, record = pod_of(event), parse_record(annotations.get(ANNOTATION))
        # Whoever may write Events could claim a volume: others than the agents have nothing to say of it.
        if pod is None or record is None or source_of(event) != AGENT:
            return False
        known = self._records.of(*pod) or ()
        if record in known:
            return False
        others = [each for each in known if each.volume != record.volume]
        # Events come in any order after a list, and a volume can be published again: the newest record counts.
        newer = [each for each in known if each.volume == record.volume and each.at > record.at]
        kept = sorted([*others, *(newer or [record])], key=lambda each: each.volume)
        # Bounded: a pod's Events are as many as somebody writes.
        self._records.put(*pod, tuple(kept[:_MOST_VOLUMES]))
        return not newer

    def of(self, namespace: str, uid: str) -> tuple[PublishRecord, ...]:
        """A pod's records, by volume."""
        return self._records.of(namespace, uid) or ()

    def forget(self, namespace: str, uid: str) -> None:
        """Forget a pod that is gone."""
        self._records.forget(namespace, uid)
