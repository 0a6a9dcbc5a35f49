"""Follows one API path: list, watch from there, resume where a watch ended, list again when the version has expired.

A listener gets all objects at each list and single changes in between, so its state converges to the server's.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from cache_agent.api.kube.backoff import JitteredBackoff
from cache_agent.api.kube.kube_client import KubeClient
from cache_agent.api.kube.refusals import Gone
from modelimage.errors import NotFound, WeightyardError

Json = dict[str, Any]


class Listener(Protocol):
    """Receives the objects of a followed path."""

    def replace(self, documents: list[Json]) -> None:
        """These are all objects; others no longer exist."""

    def put(self, document: Json) -> None:
        """An object is new or has changed."""

    def drop(self, document: Json) -> None:
        """An object was deleted."""

    def trouble(self, error: WeightyardError | None) -> None:
        """Following failed with this error; None: it works again."""


@dataclass
class Follower:
    """Follows one path for ever. `sleep` and `backoff` are injected for tests."""

    api: KubeClient
    path: str
    listener: Listener
    query: Mapping[str, str] = field(default_factory=dict)
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    backoff: JitteredBackoff = field(default_factory=lambda: JitteredBackoff(random.random))

    _version: str | None = None

    async def run(self) -> None:
        """Follow until cancelled. Errors are reported to the listener and retried with backoff."""
        while True:
            try:
                if self._version is None:
                    documents, self._version = await self.api.list_all(self.path, self.query)
                    # Before watching, so that changes apply to the state that the version belongs to.
                    self.listener.replace(documents)
                    self._well()
                # A server that ends watches without an event would otherwise be requested in a tight loop.
                if not await self._watch(self._version):
                    await self.sleep(self.backoff.first)
            except Gone as error:
                self._version = None
                # A server that calls each list's own version expired would otherwise be asked in a tight loop.
                await self.sleep(self.backoff.after(error))
            except WeightyardError as error:
                # The kind itself is gone. It may come back as a new one, which no old version leads to.
                if isinstance(error, NotFound):
                    self._version = None
                self.listener.trouble(error)
                await self.sleep(self.backoff.after(error))

    async def _watch(self, version: str) -> bool:
        """Pass changes to the listener until the watch ends; return whether there were any. Keeps the last version."""
        told = False
        watch = self.api.watch(self.path, self.query, version, opened=self._opened)
        async for kind, document in watch:
            self._version = str(document["metadata"].get("resourceVersion") or self._version)
            if kind == "DELETED":
                self.listener.drop(document)
            elif kind != "BOOKMARK":
                self.listener.put(document)
            if not told:
                self.backoff.reset()
            told = True
        return told

    def _opened(self) -> None:
        # Nothing may change for hours. The backoff isn't reset yet: the server may break off each watch at once.
        self.listener.trouble(None)

    def _well(self) -> None:
        self.backoff.reset()
        self.listener.trouble(None)
