"""Follows one API path: list, watch from there, resume where a watch ended, list again when the version has expired.

A listener gets all objects at each list and single changes in between, so its state converges to the server's.

A server whose etcd was restored from a backup counts versions from an earlier one on. A watch from a later version is
silent until that version is reached again, perhaps for days. No server answers during a restoration, so a watch that
none accepted isn't resumed. One that broke off is.
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
from modelimage.errors import NotFound, RateLimited, Unreachable, WeightyardError

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
    _accepted: bool = False  # whether the server has accepted the last watch

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
                was_away = isinstance(error, Unreachable) and not isinstance(error, RateLimited)
                # A kind that is gone may come back as a new one. Neither that nor a restored server knows old versions.
                if isinstance(error, NotFound) or (was_away and not self._accepted):
                    self._version = None
                self.listener.trouble(error)
                await self.sleep(self.backoff.after(error))

    async def _watch(self, version: str) -> bool:
        """Pass changes to the listener until the watch ends; return whether there were any. Keeps the last version."""
        told = self._accepted = False
        watch = self.api.watch(self.path, self.query, version, opened=self._opened)
        async for kind, document in watch:
            version = str(document["metadata"].get("resourceVersion") or self._version)
            if _is_before(version, self._version):
                raise Gone(
                    f"the versions of {self.path} went back from {self._version} to {version}"
                )
            self._version = version
            if kind == "DELETED":
                self.listener.drop(document)
            elif kind != "BOOKMARK":
                self.listener.put(document)
            if not told:
                self.backoff.reset()
            told = True
        return told

    def _opened(self) -> None:
        self._accepted = True
        # Nothing may change for hours. The backoff isn't reset yet: the server may break off each watch at once.
        self.listener.trouble(None)

    def _well(self) -> None:
        self.backoff.reset()
        self.listener.trouble(None)


def _is_before(version: str, other: str | None) -> bool:
    """Whether one version is older than another: of one path they are ordered numbers (KEP-5504), or not compared."""
    numbers = other is not None and other.isdecimal() and version.isdecimal()
    return numbers and int(version) < int(other or 0)
