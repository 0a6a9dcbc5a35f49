"""Writes this node's NodeCache: soon after a change of state, rarely while only numbers move, never when idle.

After a failed write the newest status is written once the server is reachable again.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

from cache_agent.api.kube.backoff import JitteredBackoff
from cache_agent.api.kube.kube_client import KubeClient
from cache_agent.api.kube.refusals import Conflict
from cache_agent.api.kube_objects import API_VERSION
from cache_agent.api.node_cache import KIND, PLURAL, NodeCacheStatus
from cache_agent.node.threads import wait_event
from cache_agent.prewarm.cluster.node_owner import NodeOwner
from modelimage.errors import NotFound, WeightyardError

Json = dict[str, Any]

PATH: Final = f"/apis/{API_VERSION}/{PLURAL}"
# The least seconds between two writes: for changes of state, for progress, for drifting numbers.
SOON, PROGRESS, SELDOM = 0.5, 5.0, 300.0
# Changes of less than this share of the total space aren't reported.
_SPACE_SHARE: Final = 0.01


def urgency(written: NodeCacheStatus | None, now: NodeCacheStatus) -> float | None:
    """The least seconds between the last write and this one; None when there is nothing new to write."""
    # Pods and rollouts wait for a state, so it is written at once. Numbers only inform, and each write of a thousand
    # nodes reaches every watcher.
    if written is None or _states(written) != _states(now):
        return SOON
    if written.desired != now.desired:
        return PROGRESS
    if written.models != now.models or written.conditions != now.conditions:
        return SELDOM
    # Uses alone change nothing that is to be done.
    if [each.key for each in written.next_victims] != [each.key for each in now.next_victims]:
        return SELDOM
    share = max(1, now.space.total) * _SPACE_SHARE
    moved = (
        abs(getattr(written.space, name) - getattr(now.space, name)) > share
        for name in ("total", "used", "free", "evictable")
    )
    return SELDOM if any(moved) else None


def _states(status: NodeCacheStatus) -> object:
    """The fields that controllers act on, without the numbers that merely move."""
    return (
        [(w.name, w.uid, w.observed_generation, w.state, w.reason, w.message, w.tier, w.pinned,
          w.runtime_image) for w in status.desired],
        [(m.key, m.state, m.tier, m.pinned) for m in status.models],
        [(c.type, c.status, c.reason) for c in status.conditions],
    )  # fmt: skip


@dataclass
class NodeCacheWriter:
    """Writes one node's reports. `make` returns the newest status; `busy`: it changes without `changed` being set.

    `changed` is set by the owner of the status whenever it may have changed. Belongs to one event loop.
    """

    api: KubeClient
    owner: NodeOwner
    make: Callable[[NodeCacheStatus], NodeCacheStatus]
    busy: Callable[[], bool]
    changed: asyncio.Event
    note: Callable[..., None]
    monotonic: Callable[[], float]
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    backoff: JitteredBackoff = field(
        default_factory=lambda: JitteredBackoff(random.random, first=1.0)
    )
    # The status on the server; None: unknown, so the next patch has all fields.
    written: NodeCacheStatus | None = None
    writes: int = 0
    # The resourceVersion: sent with each patch, so that it fails when another client wrote in between.
    _version: str | None = None
    _at: float = float("-inf")

    def __post_init__(self) -> None:
        # The first status is always written.
        self.changed.set()

    def rewrite(self) -> None:
        """Write the whole status soon, although nothing is new: someone else may have changed the one on the server."""
        self.written, self._version = None, None
        self.changed.set()

    async def run(self) -> None:
        """Write reports until cancelled."""
        while True:
            await wait_event(self.changed, PROGRESS if self.busy() else None)
            self.changed.clear()
            await self._report()

    async def _report(self) -> None:
        """Wait until a change may be written, then write the status of that moment."""
        while True:
            status = self.make(self.written or NodeCacheStatus())
            after = urgency(self.written, status)
            if after is None:
                return
            left = self._at + after - self.monotonic()
            if left <= 0:
                break
            # A change while waiting may be more urgent: decide again, with the newest status.
            if await wait_event(self.changed, left):
                self.changed.clear()
                await self.sleep(0)
        await self._write(status)

    async def _write(self, status: NodeCacheStatus) -> None:
        try:
            await self._patch(status)
        except Conflict:
            self._version = None  # another client wrote: read the object, then write again
            self.changed.set()
        except WeightyardError as error:
            # `changed` is set again so that the loop retries although nothing new happened.
            self.note("report not written", problem=error.message)
            self.changed.set()
            await self.sleep(self.backoff.after(error))
        else:
            self.backoff.reset()
            self.written, self._at = status, self.monotonic()
            self.writes += 1

    async def _patch(self, status: NodeCacheStatus) -> None:
        if self._version is None:
            self._version = await self._existing()
        known = {"resourceVersion": self._version} if self._version else {}
        body = f'{{"metadata": {json.dumps(known)}, "status": {_fields(status, self.written)}}}'
        try:
            answer = await self.api.patch(f"{PATH}/{self.owner.node}/status", body)
        except NotFound:
            self._version, self.written = None, None  # deleted: the next report creates it
            raise
        self._version = _version_of(answer)

    async def _existing(self) -> str:
        """The object's resourceVersion. Creates a missing object, owned by the Node so that it is deleted with it."""
        # The stored status is unknown, so the next patch must hold every field, not only the changed ones.
        self.written = None
        try:
            found = await self.api.get(f"{PATH}/{self.owner.node}")
        except NotFound:
            found = await self.api.create(PATH, await self._document())
        return _version_of(found)

    async def _document(self) -> Json:
        return {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"name": self.owner.node, **await self.owner.metadata()},
            "spec": {"node": self.owner.node},
        }


def _version_of(document: Json) -> str:
    return str((document.get("metadata") or {}).get("resourceVersion", ""))


def _fields(status: NodeCacheStatus, written: NodeCacheStatus | None) -> str:
    """The top-level fields of a status that differ from the last write, as JSON, to keep patches small."""
    differ = {
        name
        for name in NodeCacheStatus.model_fields
        if written is None or getattr(written, name) != getattr(status, name)
    }
    return status.model_dump_json(by_alias=True, exclude_none=True, include=differ)
