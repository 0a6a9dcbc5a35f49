"""What Events tell of the volumes that pods wait for: kubelet's FailedMount, with an agent's words, and agents' own.

The state of a pod doesn't have it. Events expire and may be lost, so they only explain a pod that has no volumes yet.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Final

Json = dict[str, Any]

# The Events to ask an API server for: no others of a whole cluster.
FAILED_MOUNT: Final = "involvedObject.kind=Pod,reason=FailedMount"
PULLING_MODEL: Final = "involvedObject.kind=Pod,reason=PullingModel"

_AGENT: Final = "weightyard-agent"
# A thousand pods that start at once on broken nodes; each costs below a kilobyte.
_MOST_PODS: Final = 2000
_LONGEST_UID: Final = 64  # characters; a pod's has 36
_MOST_WORDS: Final = 500  # characters
_CSI_ERROR: Final = re.compile(r"rpc error: code = (\w+) desc = (.*)", re.DOTALL)
_PREFIX: Final = re.compile(
    r"^(\(combined from similar events\): )?(MountVolume\.\w+ failed for volume \S+ : )?"
)
# An agent answers so while a model is on its way; kubelet calls again.
_STILL_PULLING: Final = "Aborted"
# kubelet's caches of a pod's Secrets and ConfigMaps, which fill in a moment.
_TRANSIENT: Final = ("failed to sync", "not registered")
# kubelet's sum of all volumes after two minutes: it says less than the Event of the volume itself.
_SUMMARY: Final = "Unable to attach or mount volumes"


@dataclass(frozen=True, slots=True)
class MountNews:
    """Why a pod has no volumes yet. `failed`: something is wrong, and not only under way. `at` is RFC 3339."""

    words: str
    failed: bool
    at: str = ""
    is_summary: bool = False

    @property
    def rank(self) -> tuple[bool, str]:
        """The greatest counts: the newest, and a volume's own before the sum of all."""
        return not self.is_summary, self.at


def parse_event(event: Json) -> MountNews | None:
    """What an Event tells of a pod's volumes; None if it is about something else."""
    reason, text = event.get("reason"), str(event.get("message") or "")
    series = event.get("series") or {}
    # Two generations of the Events API: newer clients note a repetition in `series`, older ones in `lastTimestamp`.
    at = str(
        series.get("lastObservedTime") or event.get("lastTimestamp") or event.get("eventTime") or ""
    )
    source = (event.get("source") or {}).get("component") or event.get("reportingComponent")
    if reason == "PullingModel" and source == _AGENT:
        return MountNews(text[:_MOST_WORDS], failed=False, at=at)
    if reason != "FailedMount":
        return None
    # kubelet puts its own words in front of the driver's, which would push the cause out of the bound.
    plain = _PREFIX.sub("", text, count=1)
    error = _CSI_ERROR.search(plain)
    if error is not None:
        failed = error[1] != _STILL_PULLING
        return MountNews(error[2][:_MOST_WORDS], failed=failed, at=at)
    failed = not any(each in plain for each in _TRANSIENT)
    return MountNews(plain[:_MOST_WORDS], failed, at, is_summary=plain.startswith(_SUMMARY))


@dataclass(slots=True)
class MountEvents:
    """The newest news of each pod, by namespace and uid. Bounded: the oldest of the namespace with most is forgotten.

    Whoever may write Events of a namespace may write any text under any uid: that must tell nothing of another
    namespace's pods, and displace nothing that is known of them.
    """

    _news: dict[str, OrderedDict[str, MountNews]] = field(default_factory=dict)
    _count: int = 0

    def put(self, event: Json) -> bool:
        """Keeps what an Event tells. Returns whether that is new."""
        # The namespace in which it was written: that alone is what its writer has a right to.
        namespace = str((event.get("metadata") or {}).get("namespace") or "")
        uid, news = (event.get("involvedObject") or {}).get("uid"), parse_event(event)
        if not isinstance(uid, str) or not 0 < len(uid) <= _LONGEST_UID or news is None:
            return False
        known = self.of(namespace, uid)
        # A list comes in the order of names, so that an older Event may follow.
        if known is not None and known.rank > news.rank:
            return False
        pods = self._news.setdefault(namespace, OrderedDict())
        self._count += uid not in pods
        pods[uid] = news
        pods.move_to_end(uid)
        if self._count > _MOST_PODS:
            largest = max(self._news, key=lambda each: len(self._news[each]))
            self.forget(largest, next(iter(self._news[largest])))
        return known is None or (known.words, known.failed) != (news.words, news.failed)

    def of(self, namespace: str, uid: str) -> MountNews | None:
        pods = self._news.get(namespace)
        return None if pods is None else pods.get(uid)

    def forget(self, namespace: str, uid: str) -> None:
        """Forgets a pod that is gone."""
        pods = self._news.get(namespace, OrderedDict())
        self._count -= pods.pop(uid, None) is not None
        if not pods:
            self._news.pop(namespace, None)
