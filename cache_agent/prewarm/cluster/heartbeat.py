"""Renews this agent's heartbeat Lease, by which the controller notices an agent that is gone or cut off."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from cache_agent.api.heartbeat import (
    HEARTBEAT_LABEL,
    LEASES_API,
    RENEW_SECONDS,
    SILENT_SECONDS,
    lease_name,
)
from cache_agent.api.kube.kube_client import KubeClient
from cache_agent.prewarm.cluster.node_owner import NodeOwner
from modelimage.errors import NotFound, WeightyardError

Json = dict[str, Any]

# Agents that start together, in a rollout or after a power cut, must not renew together for ever.
_JITTER: Final = 0.1


@dataclass
class Heartbeat:
    """Renews one node's Lease. `lapsed` is called when the node's report may have been changed or deleted meanwhile.

    The controller declares silent agents so, and the API server deletes the objects of a Node that is deleted.
    `clock` is the wall time, `monotonic` any clock that never jumps, both in seconds. Belongs to one event loop.
    """

    api: KubeClient
    owner: NodeOwner
    lapsed: Callable[[], None]
    note: Callable[..., None]
    clock: Callable[[], float]
    monotonic: Callable[[], float]
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    draw: Callable[[], float] = random.random
    _renewed: float | None = None
    # Renewals after which the report is written again: the API server may delete it later than the Lease.
    _lost: int = 0

    async def run(self) -> None:
        """Renew until cancelled."""
        while True:
            await self.renew()
            await self.sleep(RENEW_SECONDS * (1 - _JITTER * self.draw()))

    async def renew(self) -> None:
        """Renew once. A failure is logged only: the next renewal comes soon, and silence is what it would tell."""
        begun = self.monotonic()
        try:
            made = await self._write()
        except WeightyardError as error:
            self.note("heartbeat not written", problem=error.message)
            return
        if made and self._renewed is not None:
            self._lost = 2
        # The controller sees a renewal up to one of its own periods late, so it may count from the one before.
        late = self._renewed is not None and begun - self._renewed > SILENT_SECONDS - RENEW_SECONDS
        if self._lost or late:
            self.lapsed()
        self._lost, self._renewed = max(0, self._lost - 1), begun

    async def _write(self) -> bool:
        """Whether the Lease was missing."""
        path = f"/apis/{LEASES_API}/namespaces/{self.api.namespace}/leases"
        spec = {
            "holderIdentity": self.owner.node,
            "leaseDurationSeconds": int(SILENT_SECONDS),
            "renewTime": _micro_time(self.clock()),
        }
        # Renewed before it is made: it is missing once in a node's life.
        try:
            await self.api.patch(
                f"{path}/{lease_name(self.owner.node)}", json.dumps({"spec": spec})
            )
        except NotFound:
            await self._create(path, spec)
            return True
        return False

    async def _create(self, path: str, spec: Json) -> None:
        metadata = {
            "name": lease_name(self.owner.node),
            "labels": {HEARTBEAT_LABEL: "agent"},
            **await self.owner.metadata(),
        }
        document = {"apiVersion": LEASES_API, "kind": "Lease", "metadata": metadata, "spec": spec}
        await self.api.create(path, document)


def _micro_time(seconds: float) -> str:
    """Seconds since the epoch as Kubernetes' MicroTime."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
