"""Writes this node's NodeCache: soon after something changed, seldom while only numbers move, never at rest.

A report that can't be written is written again, the newest one, when the server can be reached.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from cache_agent.api.document import API_VERSION
from cache_agent.api.node_cache import KIND, PLURAL, NodeCacheStatus
from cache_agent.api.refusals import Conflict
from cache_agent.node.threads import wait_event
from cache_agent.prewarm.cluster.backoff import Backoff
from cache_agent.prewarm.cluster.client import Api
from modelimage.errors import NotFound, WeightyardError

Json = dict[str, Any]

PATH: Final = f"/apis/{API_VERSION}/{PLURAL}"
# At least so long between two writes, in seconds: for changes of state, for progress, for numbers that drift.
SOON, PROGRESS, SELDOM = 0.5, 5.0, 300.0
# Less than this share of the whole space is no change of it.
_SPACE_SHARE: Final = 0.01


def urgency(written: NodeCacheStatus | None, now: NodeCacheStatus) -> float | None:
    """How long after the last write a report may be written; None when it says nothing new."""
    if written is None or _states(written) != _states(now):
        return SOON
    if written.wanted != now.wanted:
        return PROGRESS
    if written.models != now.models or written.conditions != now.conditions:
        return SELDOM
    share = max(1, now.space.total) * _SPACE_SHARE
    moved = (
        abs(getattr(written.space, name) - getattr(now.space, name)) > share
        for name in ("total", "used", "free", "evictable")
    )
    return SELDOM if any(moved) else None


def _states(status: NodeCacheStatus) -> object:
    """What others act upon."""
    return (
        [(w.name, w.uid, w.observed_generation, w.state, w.reason, w.message, w.tier, w.pinned,
          w.runtime_image) for w in status.wanted],
        [(m.key, m.state, m.tier, m.pinned) for m in status.models],
        [(c.type, c.status, c.reason) for c in status.conditions],
    )  # fmt: skip


@dataclass
class Reporter:
    """One node's reports. `make` gives the newest status, `busy` tells that it moves by itself."""

    api: Api
    node: str
    make: Callable[[NodeCacheStatus], NodeCacheStatus]
    busy: Callable[[], bool]
    note: Callable[..., None]
    monotonic: Callable[[], float]
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    backoff: Backoff = field(default_factory=lambda: Backoff(random.random, first=1.0))
    written: NodeCacheStatus | None = None
    writes: int = 0
    _version: str | None = None
    _at: float = float("-inf")

    def __post_init__(self) -> None:
        self._changed = asyncio.Event()
        self._changed.set()

    def changed(self) -> None:
        """There may be something new to say."""
        self._changed.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await wait_event(self._changed, PROGRESS if self.busy() else None)
            self._changed.clear()
            await self._report()

    async def _report(self) -> None:
        """Write what is new once it is time, the newest by then."""
        while True:
            status = self.make(self.written or NodeCacheStatus())
            after = urgency(self.written, status)
            if after is None:
                return
            left = self._at + after - self.monotonic()
            if left <= 0:
                break
            if await wait_event(self._changed, left):
                self._changed.clear()
                await self.sleep(0)
        await self._write(status)

    async def _write(self, status: NodeCacheStatus) -> None:
        try:
            await self._patch(status)
        except Conflict:
            self._version = None  # somebody else wrote: read again, then say it again
            self._changed.set()
        except WeightyardError as error:
            self.note("report not written", problem=error.message)
            self._changed.set()
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
            answer = await self.api.patch(f"{PATH}/{self.node}/status", body)
        except NotFound:
            self._version, self.written = None, None  # deleted: the next report makes it anew
            raise
        self._version = _version_of(answer)

    async def _existing(self) -> str:
        """The object's version; made if it isn't there, owned by the Node, with which it goes."""
        self.written = None
        try:
            found = await self.api.get(f"{PATH}/{self.node}")
        except NotFound:
            found = await self.api.create(PATH, await self._document())
        return _version_of(found)

    async def _document(self) -> Json:
        metadata: Json = {"name": self.node}
        with suppress(NotFound):
            node = await self.api.get(f"/api/v1/nodes/{self.node}")
            owner = {"apiVersion": "v1", "kind": "Node", "name": self.node}
            metadata["ownerReferences"] = [{**owner, "uid": node["metadata"]["uid"]}]
        return {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": metadata,
            "spec": {"node": self.node},
        }


def _version_of(document: Json) -> str:
    return str((document.get("metadata") or {}).get("resourceVersion", ""))


def _fields(status: NodeCacheStatus, written: NodeCacheStatus | None) -> str:
    """The parts of a status that differ from what was written, as JSON: so that little is made and sent."""
    differ = {
        name
        for name in NodeCacheStatus.model_fields
        if written is None or getattr(written, name) != getattr(status, name)
    }
    return status.model_dump_json(by_alias=True, exclude_none=True, include=differ)
