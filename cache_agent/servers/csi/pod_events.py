"""Events on pods that wait for their model, so that `kubectl describe pod` says what they wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from cache_agent.api.kube.kube_client import KubeClient
from cache_agent.api.kube_objects import event, timestamp
from cache_agent.api.publish_record import ANNOTATION, PublishRecord
from modelimage.errors import WeightyardError

Json = dict[str, Any]

# More than that at once, and the API server has other troubles than our Events.
_MOST_WAITING: Final = 256


@dataclass(frozen=True, slots=True)
class PodEvent:
    """One Event. `uid` and `name`, as namespace/name, are the pod's.

    `record` tells how the volume was published. It is asked for when the Event is written, after the pod's start.
    """

    uid: str
    name: str
    reason: Literal["PullingModel", "ModelMounted"]
    message: str
    record: Callable[[], Awaitable[PublishRecord]] | None = None


@dataclass
class PodEvents:
    """Events to write. `tell` forgets them while nothing writes, as without a cluster. Belongs to one event loop."""

    clock: Callable[[], float]
    note: Callable[..., None]
    _queue: asyncio.Queue[PodEvent] | None = field(default=None, init=False)

    def tell(self, told: PodEvent) -> None:
        """Write an Event soon. It is dropped when too many wait: pods must not wait for their Events."""
        # kubelet gives no name where podInfoOnMount is off; an Event needs its pod's namespace.
        if self._queue is not None and told.name and not self._queue.full():
            self._queue.put_nowait(told)

    async def write(self, api: KubeClient, node: str) -> None:
        """Write Events until cancelled. A refused one is logged and given up: Events only inform."""
        # Bounded: an API server that is away for hours must not fill the agent's memory with Events.
        self._queue = asyncio.Queue(_MOST_WAITING)
        try:
            while True:
                told = await self._queue.get()
                namespace = told.name.partition("/")[0]
                try:
                    record = await told.record() if told.record else None
                    document = _document(told, node, timestamp(self.clock()), record)
                    await api.create(f"/api/v1/namespaces/{namespace}/events", document)
                except WeightyardError as error:
                    self.note("event not written", pod=told.name, problem=error.message)
        finally:
            # Nothing takes events out any more.
            self._queue = None


def _document(told: PodEvent, node: str, now: str, record: PublishRecord | None) -> Json:
    namespace, _, name = told.name.partition("/")
    pod = {"apiVersion": "v1", "kind": "Pod", "namespace": namespace, "name": name, "uid": told.uid}
    # Several events of a pod in one second must not take the same name.
    metadata: Json = {"generateName": f"{name[:200]}.", "namespace": namespace}
    if record is not None:
        metadata["annotations"] = {ANNOTATION: record.to_annotation()}
    return event(
        pod, metadata, kind="Normal", reason=told.reason, message=told.message,
        source={"component": "weightyard-agent", "host": node}, now=now,
    )  # fmt: skip
