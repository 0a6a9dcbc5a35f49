"""What Events tell of the volumes that pods wait for: kubelet's FailedMount, with an agent's words, and agents' own.

The state of a pod doesn't have it. Events expire and may be lost, so they only explain a pod that has no volumes yet.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final

from workspace.controller.observation.pod_news import AGENT, PodNews, event_time, pod_of, source_of

Json = dict[str, Any]

# The Events to ask an API server for: no others of a whole cluster.
FAILED_MOUNT: Final = "involvedObject.kind=Pod,reason=FailedMount"
PULLING_MODEL: Final = "involvedObject.kind=Pod,reason=PullingModel"

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
    at = event_time(event)
    if reason == "PullingModel" and source_of(event) == AGENT:
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
    """The newest news of each pod, by namespace and uid."""

    _news: PodNews[MountNews] = field(default_factory=PodNews)

    def put(self, event: Json) -> bool:
        """Keeps what an Event tells. Returns whether that is new."""
        pod, news = pod_of(event), parse_event(event)
        if pod is None or news is None:
            return False
        known = self._news.of(*pod)
        # A list comes in the order of names, so that an older Event may follow.
        if known is not None and known.rank > news.rank:
            return False
        self._news.put(*pod, news)
        return known is None or (known.words, known.failed) != (news.words, news.failed)

    def of(self, namespace: str, uid: str) -> MountNews | None:
        """A pod's news; None without any."""
        return self._news.of(namespace, uid)

    def forget(self, namespace: str, uid: str) -> None:
        """Forgets a pod that is gone."""
        self._news.forget(namespace, uid)
