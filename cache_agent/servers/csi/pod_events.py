"""Events on pods that wait for their model, so that `kubectl describe pod` says what they wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from cache_agent.api.kube.kube_client import KubeClient
from cache_agent.api.kube_objects import timestamp
from modelimage.errors import WeightyardError

Json = dict[str, Any]

# More than that at once, and the API server has other troubles than our Events.
_MOST_WAITING: Final = 256
_LONGEST_MESSAGE: Final = 1024  # the API server's limit


@dataclass(frozen=True, slots=True)
class PodEvent:
    """One Event. `uid` and `name`, as namespace/name, are the pod's."""

    uid: str
    name: str
    reason: Literal["PullingModel", "ModelMounted"]
    message: str


@dataclass
class PodEvents:
    """Events to write. `tell` forgets them while nothing writes, as without a cluster. Belongs to one event loop."""

    clock: Callable[[], float]
    note: Callable[..., None]
    _queue: asyncio.Queue[PodEvent] | None = field(default=None, init=False)

    def tell(self, event: PodEvent) -> None:
        """Write an Event soon. It is dropped when too many wait: pods must not wait for their Events."""
        # kubelet gives no name where podInfoOnMount is off; an Event needs its pod's namespace.
        if self._queue is not None and event.name and not self._queue.full():
            self._queue.put_nowait(event)

    async def write(self, api: KubeClient, node: str) -> None:
        """Write Events until cancelled. A refused one is logged and given up: Events only inform."""
        self._queue = asyncio.Queue(_MOST_WAITING)
        try:
            while True:
                event = await self._queue.get()
                namespace = event.name.partition("/")[0]
                document = _document(event, node, timestamp(self.clock()))
                try:
                    await api.create(f"/api/v1/namespaces/{namespace}/events", document)
                except WeightyardError as error:
                    self.note("event not written", pod=event.name, problem=error.message)
        finally:
            self._queue = None


def _document(event: PodEvent, node: str, now: str) -> Json:
    namespace, _, name = event.name.partition("/")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        # Several events of a pod in one second must not take the same name.
        "metadata": {"generateName": f"{name[:200]}.", "namespace": namespace},
        "involvedObject": {
            "apiVersion": "v1", "kind": "Pod", "namespace": namespace, "name": name, "uid": event.uid,
        },
        "type": "Normal",
        "reason": event.reason,
        "message": event.message[:_LONGEST_MESSAGE],
        "count": 1,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "source": {"component": "weightyard-agent", "host": node},
    }  # fmt: skip
