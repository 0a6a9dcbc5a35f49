"""Writes Events about Workspaces and CachedModels, as client-go's recorder does: one object for what repeats, counted.

An Event's name is a hash of what it says, so a controller that takes over counts on. An object that has too much news
in a short time gets no more for a while: Events take the API server's space. An Event that can't be written is logged
and never fails the work that it is about.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from cache_agent.api.kube.refusals import Conflict
from cache_agent.api.kube_objects import event, timestamp
from modelimage.errors import WeightyardError
from workspace.controller.cluster.kube_api import KubernetesApi
from workspace.controller.process.log_events import about as named
from workspace.controller.reasons import News
from workspace.render import names

Json = dict[str, Any]

logger = logging.getLogger(__name__)

# The API server refuses an Event about an object without a namespace in any other one.
_CLUSTER_WIDE: Final = "default"  # namespace of Events about objects without one
_SOURCE: Final = "weightyard-controller"
_CAUSE: Final = f"{names.DOMAIN}/cause"
# As client-go: 25 Events of an object at once, then one every 5 minutes.
_BURST: Final = 25
_REFILL: Final = 300.0  # seconds
_MOST_BUCKETS: Final = 10_000


@dataclass(slots=True)
class _Bucket:
    left: float = _BURST
    at: float = 0.0


@dataclass(slots=True)
class EventRecorder:
    """Publishes news about objects. `recorded` is told the reason of each."""

    api: KubernetesApi
    now: Callable[[], datetime]
    recorded: Callable[[str], None] = lambda reason: None
    _buckets: dict[str, _Bucket] = field(default_factory=dict)

    async def record(self, about: Json, news: News, *, cause: str = "") -> None:
        """Creates an Event, or counts it again. `about` needs apiVersion, kind and metadata.

        The same news with the same non-empty `cause` counts once, as after a crash between the Event and what follows.
        """
        try:
            await self._record(about, news, _hash(cause) if cause else "")
        except WeightyardError as error:
            logger.warning(
                "the event %s can't be recorded: %s",
                news.reason,
                error.message,
                extra=named("event not recorded", object=_name(about)),
            )

    async def _record(self, about: Json, news: News, cause: str) -> None:
        document = _event(about, news, cause, timestamp(self.now().timestamp()))
        if not self._may(str(about["metadata"]["uid"])):
            logger.info(
                "%s %s: %s",
                about["metadata"]["name"],
                news.reason,
                news.message,
                extra=named("event withheld", object=_name(about)),
            )
            return
        self.recorded(news.reason.value)
        # Created without asking whether it is there: most news is new, and what repeats has the same name.
        try:
            await self.api.create(document)
        except Conflict:
            await self._count(document, cause)

    async def _count(self, document: Json, cause: str) -> None:
        namespace, name = document["metadata"]["namespace"], document["metadata"]["name"]
        known = await self.api.get("Event", namespace, name)
        if cause and (known["metadata"].get("annotations") or {}).get(_CAUSE) == cause:
            return
        patch = {
            "metadata": {"annotations": {_CAUSE: cause}},
            "count": int(known.get("count") or 1) + 1,
            "lastTimestamp": document["lastTimestamp"],
        }
        await self.api.merge("Event", name, patch, namespace=namespace)

    def _may(self, uid: str) -> bool:
        now = self.now().timestamp()
        if len(self._buckets) > _MOST_BUCKETS:
            # A full bucket is as good as none; the others are of objects that had news lately.
            full = _BURST * _REFILL
            self._buckets = {u: b for u, b in self._buckets.items() if now - b.at < full}
        bucket = self._buckets.setdefault(uid, _Bucket(at=now))
        bucket.left = min(_BURST, bucket.left + (now - bucket.at) / _REFILL)
        bucket.at = now
        if bucket.left < 1:
            return False
        bucket.left -= 1
        return True


def _event(about: Json, news: News, cause: str, now: str) -> Json:
    metadata = about["metadata"]
    namespace = metadata.get("namespace")
    digest = _hash(metadata["uid"], news.type, news.reason, news.message)
    made = {
        # A name may have 253 characters: 200 of the object's leave place for the dot and the hash.
        "name": f"{metadata['name'][:200]}.{digest}", "namespace": namespace or _CLUSTER_WIDE,
        "annotations": {_CAUSE: cause},
    }  # fmt: skip
    reference = {
        "apiVersion": about["apiVersion"], "kind": about["kind"], "name": metadata["name"],
        "uid": metadata["uid"], **({"namespace": namespace} if namespace else {}),
    }  # fmt: skip
    return event(
        reference, made, kind=news.type, reason=news.reason.value, message=news.message,
        source={"component": _SOURCE}, now=now,
    )  # fmt: skip


def _name(document: Json) -> str:
    metadata = document["metadata"]
    return "/".join(filter(None, (metadata.get("namespace"), metadata["name"])))


def _hash(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
