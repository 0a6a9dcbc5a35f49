"""Follow one kind of object: list, watch from there, resume where a watch ended, list anew when that is too long ago.

What listens is told the whole at each list and single changes in between, so it holds what the server holds.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from cache_agent.api.refusals import Gone
from cache_agent.prewarm.cluster.backoff import Backoff
from cache_agent.prewarm.cluster.client import Api
from modelimage.errors import WeightyardError

Json = dict[str, Any]


class Listener(Protocol):
    """Who is told."""

    def replace(self, documents: list[Json]) -> None:
        """All there is."""

    def put(self, document: Json) -> None:
        """One is new or changed."""

    def drop(self, document: Json) -> None:
        """One was deleted."""

    def trouble(self, error: WeightyardError | None) -> None:
        """The server can't be followed now, and why; None when it can again."""


@dataclass
class Follower:
    """Follows one path for ever. `sleep` and `backoff` are where waiting happens."""

    api: Api
    path: str
    listener: Listener
    query: Mapping[str, str] = field(default_factory=dict)
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    backoff: Backoff = field(default_factory=lambda: Backoff(random.random))

    _version: str | None = None

    async def run(self) -> None:
        """Until cancelled; errors are told, waited out and tried again."""
        while True:
            try:
                if self._version is None:
                    documents, self._version = await self.api.list(self.path, self.query)
                    self.listener.replace(documents)
                    self._well()
                if not await self._watch(self._version):
                    await self.sleep(self.backoff.first)
            except Gone:
                self._version = None
            except WeightyardError as error:
                self.listener.trouble(error)
                await self.sleep(self.backoff.after(error))

    async def _watch(self, version: str) -> bool:
        """Tell changes until the watch ends; whether there were any. Where it got to is kept, for the next."""
        told = False
        async for kind, document in self.api.watch(self.path, self.query, version):
            self._version = str(document["metadata"].get("resourceVersion") or self._version)
            if kind == "DELETED":
                self.listener.drop(document)
            elif kind != "BOOKMARK":
                self.listener.put(document)
            if not told:
                self._well()
            told = True
        return told

    def _well(self) -> None:
        self.backoff.reset()
        self.listener.trouble(None)
