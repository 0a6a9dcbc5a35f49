"""The fake API server's watches: what happened since a version, then every change, with the faults of real ones."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tests.workspace.controller.fakeapi import FakeApi
from tests.workspace.controller.selection import Change, Filter, version_of
from tests.workspace.controller.statuses import status
from workspace.controller.cluster.kube_api import RESOURCES

Json = dict[str, Any]
# What ends a stream, when it comes out of its queue.
_END = None


@dataclass(eq=False)
class _Stream:
    """One watch. It is told what comes after the version that it asks for, also when that is far ahead."""

    wanted: Filter
    since: int
    queue: asyncio.Queue[Json | None] = field(default_factory=asyncio.Queue)


class WatchLog:
    """What a server's watches are told. `second` is how long a second of their `timeoutSeconds` takes."""

    def __init__(self, api: FakeApi) -> None:
        self._api = api
        self._streams: set[_Stream] = set()
        self._deaf = self._repeating = False
        self._held: list[tuple[_Stream, Json]] | None = None
        self.second = 1.0
        self.latest = 1
        self.forget()
        api.watchers.append(self._tell)

    def forget(self, *, starting: bool = False) -> None:
        """Objects are known as they are, and nothing else. After a start, watches from before are too old."""
        self._log: list[Change] = []
        self._known = {
            self._api.key(each): copy.deepcopy(each) for each in self._api.objects.values()
        }
        newest = max(map(version_of, self._known.values()), default=1)
        self.latest = max(newest, self.latest) if starting else newest
        self._oldest = self.latest if starting else 0  # a watch from before is told 410

    def close(self) -> None:
        """Every watch ends, as when a load balancer closes connections."""
        for stream in self._streams:
            stream.queue.put_nowait(_END)

    def expire(self) -> None:
        """Every watch is told that what it asks for is too old (410), as after a compaction: it must list again."""
        self._log.clear()
        self._oldest = self.latest
        for stream in self._streams:
            stream.queue.put_nowait(self._expired(stream.since))
            stream.queue.put_nowait(_END)

    @contextlib.contextmanager
    def deaf(self) -> Iterator[None]:
        """What happens in this context no watch tells."""
        self._deaf = True
        try:
            yield
        finally:
            self._deaf = False

    @contextlib.contextmanager
    def repeating(self) -> Iterator[None]:
        """What happens in this context every watch tells twice."""
        self._repeating = True
        try:
            yield
        finally:
            self._repeating = False

    @contextlib.contextmanager
    def slow(self) -> Iterator[None]:
        """What happens in this context watches tell at its end."""
        self._held = []
        try:
            yield
        finally:
            held, self._held = self._held, None
            for stream, event in held:
                stream.queue.put_nowait(event)

    async def serve(self, request: web.Request, kind: str) -> web.StreamResponse:
        """Replays what happened since the resourceVersion that is asked for, then goes on."""
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        stream = _Stream(Filter.of(request, kind), int(request.query["resourceVersion"]))
        begun = self.latest
        self._begin(stream)
        seconds = int(request.query.get("timeoutSeconds", 3600)) * self.second
        bookmarks = request.query.get("allowWatchBookmarks") == "true"
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    while (event := await stream.queue.get()) is not _END:
                        await _send(response, event)
                    bookmarks = False
            if bookmarks and self.latest > begun:
                await _send(response, self._bookmark(kind))
        except (ConnectionResetError, asyncio.CancelledError):
            pass
        finally:
            self._streams.discard(stream)
        with contextlib.suppress(ConnectionResetError):
            await response.write_eof()
        return response

    def _begin(self, stream: _Stream) -> None:
        # The answer's status is 200 by now, so this is an event.
        if stream.since < self._oldest:
            stream.queue.put_nowait(self._expired(stream.since))
            stream.queue.put_nowait(_END)
            return
        self._streams.add(stream)
        for change in self._log:
            self._pass_on(stream, change)

    def _tell(self, kind: str, document: Json) -> None:
        key = self._api.key(document)
        before = self._known.pop(key, None)
        if kind != "DELETED":
            self._known[key] = document
        self.latest = max(self.latest, version_of(document))
        if self._deaf:
            return
        change = Change(
            None if kind == "DELETED" else document,
            document if kind == "DELETED" else before or document,
        )
        self._log.append(change)
        for stream in self._streams:
            self._pass_on(stream, change)

    def _pass_on(self, stream: _Stream, change: Change) -> None:
        event = change.event(stream.wanted) if change.version > stream.since else None
        if event is None:
            return
        for _ in range(2 if self._repeating else 1):
            if self._held is None:
                stream.queue.put_nowait(event)
            else:
                self._held.append((stream, event))

    def _expired(self, since: int) -> Json:
        message = f"too old resource version: {since} ({self._oldest})"
        return {"type": "ERROR", "object": status(410, message)}

    def _bookmark(self, kind: str) -> Json:
        metadata = {"resourceVersion": str(self.latest), "creationTimestamp": None}
        document = {"kind": kind, "apiVersion": RESOURCES[kind].api, "metadata": metadata}
        return {"type": "BOOKMARK", "object": document}


async def _send(response: web.StreamResponse, event: Json) -> None:
    await response.write(json.dumps(event).encode() + b"\n")
